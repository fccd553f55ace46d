"""What each rank of `dslm launch` executes: the user's script, with the rank's log and guard."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from dslm import environment
from dslm.worker.ranks import join, live, release_shared_memory


def main() -> None:
    """Run the attempt's script as `__main__`, with its arguments."""
    rank = join(sys.argv[1:])
    script = Path(str(rank.attempt.script))

    def work() -> None:
        sys.argv = [str(script), *rank.attempt.arguments]
        sys.path.insert(0, str(script.parent))
        os.environ.pop(environment.SAFE_PATH, None)  # what the script starts itself is its own
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            release_shared_memory(rank)

    live(rank, work)


if __name__ == "__main__":
    main()
