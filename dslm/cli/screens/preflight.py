"""The screen of checked hosts: a line each, then every check that isn't green, with its fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from dslm.cli import terminal
from dslm.reach.checks import CHECKS, CheckResult, State
from dslm.units import number_of

if TYPE_CHECKING:
    from dslm.cluster.hosts import Host
    from dslm.reach.preflight import Preflight

_MARKS = {
    State.OK: ("✓ ", "green"), State.NOTE: ("! ", "yellow"), State.WRONG: ("✗ ", "red"),
}  # fmt: skip


def show_preflight(hosts: Sequence[Host], preflight: Preflight) -> None:
    """Show the results of a preflight."""
    table = Table("host", "checks", box=None, header_style="bold")
    for host in hosts:
        own = [result for result in preflight.results if result.host == host.name]
        table.add_row(Text(host.name), _line(own))
    terminal.show(table)
    odd = [result for result in preflight.results if result.state != State.OK]
    if odd:
        terminal.show(_details(odd))
    if preflight.master_address:
        over = sorted(set(preflight.interfaces.values()))
        if len(over) > 1:
            over = [f"{name} ({host})" for host, name in preflight.interfaces.items()]
        terminal.say(f"the ranks meet at {preflight.master_address}, over {', '.join(over)}")
    terminal.say(f"checked {number_of(len(hosts), 'host')} in {preflight.seconds:.1f} s")


def _line(results: Sequence[CheckResult]) -> Text:
    """The number of checks that are green, and the names of those that aren't."""
    green = sum(result.state == State.OK for result in results)
    count = f"{green} of {len(CHECKS)} ok"
    parts = [Text.assemble(_MARKS[State.OK], count)] if green else []
    for state in (State.WRONG, State.NOTE):
        names = [result.check for result in results if result.state == state]
        if names:
            parts.append(Text.assemble(_MARKS[state], ", ".join(names)))
    return Text("   ").join(parts)


def _details(results: Sequence[CheckResult]) -> Table:
    table = Table("", "host", "check", "found", "what to do", box=None, header_style="bold")
    for column in table.columns[:3]:
        column.no_wrap = True
    for result in results:
        mark, style = _MARKS[result.state]
        cells = (result.host, result.check, result.detail, result.fix)
        table.add_row(Text(mark.strip(), style), *map(Text, cells))
    return table
