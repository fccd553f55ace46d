"""What ranks of tests run instead of a training: each writes into the run what it was given.

`python -m tests.reach.payload --run WORD --attempt N`, started by a launcher on a host. Ends once
there is no file `wait` in the run.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from dslm.launch.sites import SITES
from dslm.run.attempt import path_of_word


def main() -> None:
    known = [site.rank_variables for site in SITES.values()]
    names = next(names for names in known if all(name in os.environ for name in names))
    rank, local_rank, world_size = (int(os.environ[name]) for name in names)
    written = {
        "rank": rank,
        "local_rank": local_rank,
        "world_size": world_size,
        "host": socket.gethostname(),
        "argv": sys.argv[1:],
        "environment": dict(os.environ),
    }
    run = path_of_word(sys.argv[2])
    file = run / f"rank-{rank}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(written))
    partial.replace(file)
    while (run / "wait").exists():
        time.sleep(0.1)


if __name__ == "__main__":
    main()
