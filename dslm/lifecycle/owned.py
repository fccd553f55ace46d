"""A run directory as this process's own, from before anything is decided to the end of a launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dslm.lifecycle.folder import check_output
from dslm.lifecycle.request import Listener
from dslm.run.directory import RunDirectory
from dslm.run.events import TakenOver, end_torn_line, stamp, write_event
from dslm.run.history import read_history
from dslm.run.lock import own


@contextmanager
def owned_run(folder: Path, listener: Listener) -> Iterator[RunDirectory]:
    """Own a run directory, new or not, until the block ends; a dead owner's is taken over, loudly.

    Raises:
        OptionError: somebody else trains in it, it can't be a run directory, or can't be written.
    """
    run = RunDirectory(folder.absolute())
    if run.path.exists() and not run.path.is_dir():
        check_output(run.path)
    with own(run.path) as hold:
        if run.events.is_file():
            end_torn_line(run.events)  # or what comes next would be part of it
        if hold.before is not None:
            event = TakenOver(**stamp(read_history(run).attempts), owner=str(hold.before))
            if run.manifest.is_file():
                write_event(run.events, event)
            listener.event(event)
        yield run
