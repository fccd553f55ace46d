"""The only module that prints: data to stdout, words for people to stderr.

`--json` gives one JSON document on stdout and nothing else there. Colour follows the terminal and
NO_COLOR (Rich does that). Knows how errors look, not what they mean.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dslm import environment
from dslm.errors import DslmError, shortened
from dslm.files import json_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_MOST_FINDINGS = 20  # of one error; nobody reads more before the first ones are mended
_LONGEST_MESSAGE = 1000
_WIDTH = 140  # characters, where nothing says how wide stdout is


@cache
def people() -> Console:
    """Return the console for people: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: RenderableType = "") -> None:
    """Tell people something; a string as it is, since what it quotes may look like markup."""
    people().print(text, soft_wrap=isinstance(text, str), markup=False)


def styled(markup: str) -> Text:
    """Return a line with Rich's markup; values in it must be escaped."""
    from rich.text import Text

    return Text.from_markup(markup)


@contextmanager
def busy() -> Iterator[Callable[[str], None]]:
    """Show a spinner while another process works; yields a function that updates its text."""
    from rich.text import Text

    with people().status("starting") as status:
        yield lambda detail: status.update(Text(detail))


@contextmanager
def busy_when_told() -> Iterator[Callable[[str], None]]:
    """Show a spinner from the first word on: what is quick needs none."""
    with ExitStack() as stack:
        tell: list[Callable[[str], None]] = []

        def told(detail: str) -> None:
            if not tell:
                tell.append(stack.enter_context(busy()))
            tell[0](detail)

        yield told


def show(value: RenderableType) -> None:
    """Put a result that is made for people, such as a table, on stdout."""
    from rich.console import Console

    stream = _stdout()
    known = stream.isatty() or environment.COLUMNS in os.environ
    Console(file=stream, highlight=False, width=None if known else _WIDTH).print(value)


def shows_unicode() -> bool:
    """Return whether stdout can show more than ASCII."""
    try:
        "█⣿".encode(_stdout().encoding)
    except (DslmError, LookupError, UnicodeError):
        return False
    return True


def write(text: str) -> None:
    """Put data on stdout as it is."""
    stream = _stdout()
    stream.write(text if text.endswith("\n") else text + "\n")
    stream.flush()


def write_json(document: object) -> None:
    """Put one JSON document on stdout; where that has no letter for something, escaped."""
    text = json_text(document)
    try:
        text.encode(_stdout().encoding)
    except UnicodeError:
        text = json.dumps(json.loads(text), indent=2)
    write(text)


def _stdout() -> TextIO:
    """The stream for data.

    Raises:
        DslmError: it is closed.
    """
    if sys.stdout is None:
        raise DslmError("stdout is closed, and what was asked for goes there")
    return sys.stdout


def error(failure: DslmError) -> None:
    """Show an error: what, where, what would be right."""
    from rich.text import Text

    def line(label: str, style: str, text: str) -> None:
        people().print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)

    place = f"{failure.where}: " if str(failure.where) else ""
    line("error", "bold red", place + shortened(failure.message, _LONGEST_MESSAGE))
    for finding in failure.findings[:_MOST_FINDINGS]:
        where = f"{finding.where}: " if str(finding.where) else ""
        said = shortened(finding.message, _LONGEST_MESSAGE)
        people().print(Text(f"  {where}{said}"), soft_wrap=True)
        if finding.hint:
            people().print(Text.assemble(("    hint: ", "cyan"), finding.hint), soft_wrap=True)
    if len(failure.findings) > _MOST_FINDINGS:
        people().print(Text(f"  and {len(failure.findings) - _MOST_FINDINGS:,} more"))
    if failure.hint:
        line("hint", "cyan", failure.hint)


def shown_path(path: Path) -> Path:
    """Return a path as people know it: relative to where they are, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
