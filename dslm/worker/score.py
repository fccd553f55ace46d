"""The program behind `dslm evaluate`; what takes seconds is imported when it is asked."""

from __future__ import annotations

from typing import Any

from dslm.worker.answer import Tell, answer
from dslm.worker.hub import stay_offline_without


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Evaluate one model, or two; imports what takes seconds once it is asked."""
    stay_offline_without([request["model"], request["against"]], tell)
    tell("loading PyTorch")
    from dslm.worker.scores import scores

    return scores(request, tell)


if __name__ == "__main__":
    answer(work)
