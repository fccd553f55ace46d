"""The screen of a failed attempt: one panel, the same at its end and in `dslm runs show`.

Takes the error event of a run, returns something for Rich. Knows the event's fields, no causes.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dslm.run.events import Error, JudgedWitness


def headline(failure: Error) -> str:
    """Say in a line who failed first, where and when."""
    rank, host = failure.rank, failure.host
    if rank is not None:
        who = f"rank {rank} on {host}" if host else f"rank {rank}"
    else:
        who = f"host {host}" if host else "the launcher"
    step = failure.step
    return f"{who} failed first, " + (f"after step {step}" if step else "before the first step")


def panel(failure: Error, run: Path) -> Panel:
    """Lay out cause, fix and log of a failure; of an unknown one the traceback, too.

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
    if failure.traceback:
        parts += [Text(), Text(failure.traceback)]
    title = Text(headline(failure), style="bold")
    return Panel(Group(*parts), title=title, title_align="left", border_style="red")


def _rows(failure: Error, run: Path) -> list[tuple[str, list[str]]]:
    """The lines of the panel by name; rows without content are left out."""
    ways = list(failure.ways)
    if len(ways) > 1:
        ways = [f"{number}. {way}" for number, way in enumerate(ways, 1)]
    followers = ", ".join(str(rank) for rank in failure.followers)
    plural = "s" if len(failure.followers) > 1 else ""
    return [
        (name, lines)
        for name, lines in (
            ("cause", [failure.cause or failure.message]),
            ("message", [failure.said] if failure.said else []),
            ("observed", list(failure.facts)),
            ("fix", [way for way in ways if way]),
            ("log", [str(run / failure.log)] if failure.log else []),
            ("then failed", [f"rank{plural} {followers}"] if followers else []),
        )
        if lines
    ]


def why_table(failure: Error) -> Table:
    """Lay out the rules of blame in their order, and the witnesses that each fitted."""
    from dslm.diagnose.blame import RULES
    from dslm.diagnose.witness import SOURCES

    sources = {source.value: text for source, text in SOURCES.items()}
    table = Table("", "rule", "fitted", "cause", "found in", box=None, header_style="bold")
    for number, rule in enumerate(RULES, 1):
        fitted = [one for one in failure.judged if one.rule == rule.id]
        if not fitted:
            table.add_row(str(number), Text(rule.text), "-")
        for place, one in enumerate(fitted):
            blamed = one is failure.judged[0]
            table.add_row(
                str(number) if place == 0 else "",
                Text(rule.text if place == 0 else ""),
                Text(_witness(one) + (" (blamed)" if blamed else "")),
                Text(one.failure or "unknown"),
                Text(sources.get(one.source, "")),
                style="bold" if blamed else "",
            )
    return table


def _witness(one: JudgedWitness) -> str:
    host = f" on {one.host}" if one.host else ""
    return f"the launcher{host}" if one.rank is None else f"rank {one.rank}{host}"
