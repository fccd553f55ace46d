"""How a failed attempt looks: one panel, the same at its end and in `dslm runs show`.

An error event of a run in, something for Rich out. Knows the fields of the event, no causes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


def headline(failure: Mapping[str, Any]) -> str:
    """Who failed first, where and when, in a line."""
    rank, host = failure.get("rank"), failure.get("host")
    if rank is not None:
        who = f"rank {rank} on {host}" if host else f"rank {rank}"
    else:
        who = f"host {host}" if host else "the launcher"
    step = failure.get("step")
    return f"{who} failed first, " + (f"after step {step}" if step else "before the first step")


def panel(failure: Mapping[str, Any], run: Path) -> Panel:
    """Cause, fix and log of a failure; of an unknown one the traceback, too.

    Args:
        failure: the error event.
        run: the run directory, as people know it.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in _rows(failure, run):
        for line in lines:
            table.add_row(Text(name), Text(line))
            name = ""  # noqa: PLW2901 - once for several lines
    parts: list[RenderableType] = [table]
    if failure.get("traceback"):
        parts += [Text(), Text(str(failure["traceback"]))]
    title = Text(headline(failure), style="bold")
    return Panel(Group(*parts), title=title, title_align="left", border_style="red")


def _rows(failure: Mapping[str, Any], run: Path) -> list[tuple[str, list[str]]]:
    """The lines of the panel by name; those that there is nothing for are left out."""
    ways = [str(way) for way in failure.get("ways") or ()]
    if len(ways) > 1:
        ways = [f"{number}. {way}" for number, way in enumerate(ways, 1)]
    followers = ", ".join(str(rank) for rank in failure.get("followers") or ())
    cause = str(failure.get("cause") or failure.get("message", ""))
    return [
        (name, lines)
        for name, lines in (
            ("cause", [cause]),
            ("it said", [str(failure["said"])] if failure.get("said") else []),
            ("seen", [str(fact) for fact in failure.get("facts") or ()]),
            ("fix", [way for way in ways if way]),
            ("log", [str(run / failure["log"])] if failure.get("log") else []),
            ("after it", [f"rank {followers}"] if followers else []),
        )
        if lines
    ]
