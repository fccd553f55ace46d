"""The output of a script while it runs: the log of its first rank, as it grows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dslm.cli.screens.progress import RunScreen
from dslm.run.directory import RunDirectory
from dslm.run.events import Event

_LOOK_SECONDS = 0.2


class FollowedScript:
    """A listener that shows events on a screen, and between them what the first rank prints.

    A context manager: at its end all that was printed has been shown.
    """

    def __init__(self, screen: RunScreen) -> None:
        self._screen = screen
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FollowedScript:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def run_made(self, run: Path) -> None:
        """Take in where the run is; a script has one attempt."""
        self._screen.run_made(run)
        log = RunDirectory(run).rank_log(1, 0)
        self._thread = threading.Thread(
            target=_follow, args=(log, self._screen.note, self._ended), daemon=True
        )
        self._thread.start()

    def note(self, text: str) -> None:
        """Take in a line that is no event."""
        self._screen.note(text)

    def event(self, event: Event) -> None:
        """Take in one event of the run."""
        self._screen.event(event)


def _follow(log: Path, show: Callable[[str], None], ended: threading.Event) -> None:
    """Show each line of a file that need not be there yet.

    A progress bar redraws its line after a carriage return: its last state is shown.
    """
    stream: BinaryIO | None = None
    rest = b""
    while True:
        last = ended.wait(_LOOK_SECONDS)  # once more after the end: what was written meanwhile
        if stream is None and log.is_file():
            stream = log.open("rb")
        if stream is not None:
            *lines, rest = (rest + stream.read()).split(b"\n")
            for line in [*lines, *([rest] if last and rest else [])]:
                show(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))
        if last:
            if stream is not None:
                stream.close()
            return
