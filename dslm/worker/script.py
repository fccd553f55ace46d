"""The program of each rank of `dslm launch`: the user's script, with the rank's log and guard.

If the script trains with transformers' Trainer, its steps are events of the run. The script is not
touched for that: a callback joins those that every Trainer has, when transformers' Trainer is
imported; a script that never does pays nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from dslm import environment
from dslm.worker.ranks import Rank, join, live, release_shared_memory

_TRAINER = "transformers.trainer"


class _WhenImported(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module as it is, and adds the callback once it has been executed."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TRAINER or self._loader is not None:
            return None
        sys.meta_path.remove(self)  # so that the next line finds the real one
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec) if self._loader else None

    def exec_module(self, module: ModuleType) -> None:
        if self._loader is not None:
            self._loader.exec_module(module)
        from dslm.worker.steps import Steps

        module.DEFAULT_CALLBACKS.append(Steps(self._rank))


def main() -> None:
    """Run the attempt's script as `__main__`, with its arguments."""
    rank = join(sys.argv[1:])
    script = Path(str(rank.attempt.script))

    def work() -> None:
        sys.argv = [str(script), *rank.attempt.arguments]
        sys.path.insert(0, str(script.parent))
        os.environ.pop(environment.SAFE_PATH, None)  # what the script starts itself is its own
        sys.meta_path.insert(0, _WhenImported(rank))
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            release_shared_memory(rank.rank)

    live(rank, work)


if __name__ == "__main__":
    main()
