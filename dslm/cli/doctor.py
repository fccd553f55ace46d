"""`dslm doctor`: whether this machine can train, and how fast it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from dslm.cli import options, terminal
from dslm.errors import PreflightError

Measure = Annotated[
    bool, typer.Option("--measure", help="Measure the device, links and disk for the planner.")
]
_MARKS = {"ok": "[green]✓[/]", "missing": "[yellow]-[/]", "wrong": "[red]✗[/]"}


def doctor(measure: Measure = False, json: options.Json = False) -> None:
    """Check this machine for what training needs, and show the fix for each problem.

    [dim]Examples:[/dim]

        dslm doctor

        dslm doctor --measure
    """
    from dslm.reach.doctor import check_machine

    measured = _measure() if measure else None
    checks = check_machine()
    wrong = [check for check in checks if check.state == "wrong"]
    if json:
        document = {"checks": [asdict(check) for check in checks], "measured": measured}
        terminal.write_json(document)
    else:
        _show(checks, measured)
    if wrong:
        raise PreflightError(
            f"checks failed on this machine: {', '.join(check.name for check in wrong)}",
            hint=wrong[0].fix,
        )


def _measure() -> dict[str, Any]:
    from dslm.ask.measure import measure_here

    with terminal.busy() as tell:
        return measure_here(tell)


def _show(checks: list[Any], measured: dict[str, Any] | None) -> None:
    from rich.table import Table

    table = Table("", "check", "found", "what to do", box=None, header_style="bold")
    for check in checks:
        table.add_row(_MARKS[check.state], check.name, check.value, check.fix)
    terminal.show(table)
    if measured is None:
        return
    rates = Table("measured", "", box=None, header_style="bold")
    for name, flops in measured["peak_flops"].items():
        rates.add_row(f"matrix product, {name}", f"{flops / 1e12:.3f} TFLOP/s")
    for key, name in (
        ("memory_bandwidth", "memory, read and written"),
        ("link_bandwidth", f"all-reduce over {measured['ranks']} ranks, sent by each"),
        ("disk_write", "disk, written"),
        ("disk_read", "disk, read"),
    ):
        if measured[key] is not None:
            rates.add_row(name, f"{measured[key] / 1e9:.2f} GB/s")
    terminal.show(rates)
