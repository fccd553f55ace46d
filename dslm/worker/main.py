"""What each rank of `dslm train` executes: `deepspeed --module dslm.worker.main`."""

from __future__ import annotations

from dslm.worker.guard import start_guard
from dslm.worker.ranks import live, this_rank


def main() -> None:
    """Train; the imports that take seconds happen with the log open and the guard awake."""
    rank = this_rank()
    start_guard()

    def work() -> None:
        from dslm.worker.train import train

        train(rank)

    live(rank, work)


if __name__ == "__main__":
    main()
