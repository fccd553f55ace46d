"""What each rank of `dslm train` executes: `deepspeed --module dslm.worker.main`."""

from __future__ import annotations

import gc
import sys

from dslm.worker.ranks import join, live


def main() -> None:
    """Train; the imports that take seconds happen with the log open and the guard awake."""
    rank = join(sys.argv[1:])

    def work() -> None:
        # what modules define stays: looking through it for garbage, over and over, takes a second
        gc.disable()
        from dslm.worker.train import train

        gc.freeze()
        gc.enable()
        train(rank)

    live(rank, work)


if __name__ == "__main__":
    main()
