"""`dslm doctor`: whether this machine can train, and how fast it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import options, terminal
from dslm.errors import PreflightError, Where

if TYPE_CHECKING:
    from dslm.decide.measure import Measured
    from dslm.reach.doctor import Check

Measure = Annotated[
    bool, typer.Option("--measure", help="Measure the device, links and disk for the planner.")
]
_MARKS = {"ok": "[green]✓[/]", "missing": "[yellow]-[/]", "wrong": "[red]✗[/]"}


Hostfile = Annotated[
    str | None,
    typer.Option(
        "--hostfile", "-H", metavar="FILE", help="Measure the links of these hosts, with --measure."
    ),
]


def doctor(measure: Measure = False, hostfile: Hostfile = None, json: options.Json = False) -> None:
    """Check this machine for what training needs, and show the fix for each problem.

    [dim]Examples:[/dim]

        dslm doctor

        dslm doctor --measure

        dslm doctor --measure -H hostfile
    """
    from dslm.errors import OptionError
    from dslm.reach.doctor import check_machine

    if hostfile is not None:
        if not measure:
            raise OptionError(
                "hosts are measured, not checked here",
                where=Where(key="--hostfile"),
                hint="add `--measure`; `dslm hosts check HOSTFILE` checks them",
            )
        _measure_links(hostfile, json=json)
        return
    measured = _measure() if measure else None
    checks = check_machine()
    wrong = [check for check in checks if check.state == "wrong"]
    if json:
        document = {
            "checks": [asdict(check) for check in checks],
            "measured": asdict(measured) if measured is not None else None,
        }
        terminal.write_json(document)
    else:
        _show(checks, measured)
    if wrong:
        raise PreflightError(
            f"checks failed on this machine: {', '.join(check.name for check in wrong)}",
            hint=wrong[0].fix,
        )


def _measure() -> Measured:
    from dslm.decide.measure import measure_here

    with terminal.busy() as tell:
        return measure_here(tell)


def _measure_links(hostfile: str, *, json: bool) -> None:
    from dslm.cli.screens.measured import links_table
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.links import judged, measure_links
    from dslm.lifecycle.placement import Placement

    fleet = fleet_of(Placement(hostfile=hostfile))
    with terminal.busy() as tell:
        links = measure_links(fleet, tell)
    words = judged(links, fleet.cluster.device, fleet.cluster.slots_per_host)
    if json:
        terminal.write_json({"links": asdict(links), "words": words})
        return
    for found, title in ((links.inside, "inside a host"), (links.between, "between hosts")):
        if found:
            terminal.show(links_table(found, title))
    for line in words:
        terminal.show(f"[yellow]![/] {line}")


def _show(checks: list[Check], measured: Measured | None) -> None:
    from rich.table import Table

    from dslm.cli.screens.measured import measured_tables

    table = Table("", "check", "found", "what to do", box=None, header_style="bold")
    for check in checks:
        table.add_row(_MARKS[check.state], check.name, check.value, check.fix)
    terminal.show(table)
    if measured is None:
        return
    for part in measured_tables(measured):
        terminal.show(part)
