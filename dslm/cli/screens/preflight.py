"""Hosts and checks: a table of marks, and below it each mark that isn't green, with its fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from dslm.cli import terminal
from dslm.reach.checks import CHECKS, State

if TYPE_CHECKING:
    from dslm.cluster.hosts import Host
    from dslm.reach.preflight import Preflight

_MARKS = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "wrong": "[red]✗[/]"}


def show_preflight(hosts: Sequence[Host], preflight: Preflight) -> None:
    """Show what came out of a preflight."""
    cells = {(result.host, result.check): result.state for result in preflight.results}
    table = Table("host", box=None, header_style="bold")
    for name in CHECKS:
        table.add_column(name, justify="center")
    for host in hosts:
        marks = [_MARKS[cells[host.name, n]] if (host.name, n) in cells else "" for n in CHECKS]
        table.add_row(host.name, *marks)
    terminal.show(table)
    told = [result for result in preflight.results if result.state != State.OK]
    if told:
        details = Table("", "host", "check", "found", "what to do", box=None, header_style="bold")
        for result in told:
            mark = _MARKS[result.state]
            details.add_row(mark, result.host, result.check, result.detail, result.fix)
        terminal.show(details)
    if preflight.master_address:
        over = sorted(set(preflight.interfaces.values()))
        if len(over) > 1:
            over = [f"{host} {name}" for host, name in preflight.interfaces.items()]
        terminal.say(f"the ranks meet at {preflight.master_address}, over {', '.join(over)}")
    terminal.say(f"{len(hosts)} hosts in {preflight.seconds:.1f} s")
