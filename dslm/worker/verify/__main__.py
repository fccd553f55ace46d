"""The program of each rank of `dslm verify`: `deepspeed --module dslm.worker.verify`."""

from __future__ import annotations

import sys

from dslm.recipe.load import read_resolved
from dslm.worker.hub import stay_offline_without_hub
from dslm.worker.ranks import join, live


def main() -> None:
    """Verify; the imports that take seconds happen with the log open and the guard awake."""
    rank = join(sys.argv[1:])

    def work() -> None:
        stay_offline_without_hub(read_resolved(rank.run.recipe), lambda detail: None)
        from dslm.worker.verify.ranks import verify

        verify(rank)

    live(rank, work)


if __name__ == "__main__":
    main()
