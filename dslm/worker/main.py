"""The program of each rank of `dslm train`: DeepSpeed's launcher starts it as a module."""

from __future__ import annotations

import gc
import sys

from dslm.recipe.load import read_resolved
from dslm.run.events import Phase
from dslm.worker.hub import stay_offline_without_hub
from dslm.worker.ranks import Rank, join, live


def main() -> None:
    """Train; the imports that take seconds happen with the log open and the guard awake."""
    rank = join(sys.argv[1:])

    def work() -> None:
        # what modules define stays: looking through it for garbage, over and over, takes a second
        gc.disable()
        recipe = read_resolved(rank.run.recipe)
        stay_offline_without_hub(recipe, lambda detail: _tell(rank, detail))
        from dslm.worker.imports import import_libraries

        import_libraries(recipe)
        from dslm.worker.train import train

        gc.freeze()
        gc.enable()
        train(rank)

    live(rank, work)


def _tell(rank: Rank, detail: str) -> None:
    """Record phases before anything is known of the other ranks."""
    if rank.rank == 0:
        rank.record(Phase(**rank.stamp(), phase="joining", detail=detail))


if __name__ == "__main__":
    main()
