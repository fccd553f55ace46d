"""Answer requests for models' profiles: `python -m dslm.worker.trace`."""

from __future__ import annotations

import warnings
from typing import Any

from dslm.profile.value import to_document
from dslm.worker.answer import Tell, answer


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Return the profiles of the models that requests describe."""
    tell("tracing the model: once, some seconds")
    warnings.simplefilter("ignore")
    from dslm.worker.trace.profile import profile

    return {"profiles": [to_document(profile(each)) for each in request["requests"]]}


if __name__ == "__main__":
    answer(work)
