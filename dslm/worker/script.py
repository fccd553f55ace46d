"""What each rank of `dslm launch` executes: the user's script, with the rank's log and guard."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from dslm.worker.guard import start_guard
from dslm.worker.ranks import live, release_shared_memory, this_rank


def main() -> None:
    """Run the script that the first argument names as `__main__`, with the arguments after it."""
    rank = this_rank()
    start_guard()
    script = sys.argv[1]

    def work() -> None:
        sys.argv = sys.argv[1:]
        sys.path.insert(0, str(Path(script).parent))
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            release_shared_memory(rank)

    live(rank, work)


if __name__ == "__main__":
    main()
