"""`dslm hosts`: what a hostfile says, and whether its hosts can train together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import options, terminal
from dslm.errors import HostfileError, PreflightError, Where
from dslm.units import number_of

if TYPE_CHECKING:
    from dslm.cluster.hosts import Host

app = typer.Typer(help="Show and check hosts.", no_args_is_help=True, rich_markup_mode="rich")

Hostfile = Annotated[
    str | None,
    typer.Argument(
        metavar="HOSTFILE",
        help="Lines of `HOST slots=N`, or `w1:4,w2:4`; default: the allocation of the batch job.",
    ),
]


@app.command("show")
def show(
    hostfile: Hostfile = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    json: options.Json = False,
) -> None:
    """Show the hosts and slots that a hostfile, or the allocation of a batch job, gives.

    [dim]Examples:[/dim]

        dslm hosts show hostfile --exclude worker-3

        dslm hosts show w1:4,w2:4 --json
    """
    from dslm.cluster.hostfile import hosts_document

    hosts = _hosts(hostfile, include, exclude)
    document = hosts_document(hosts)
    if json:
        terminal.write_json(document)
        return
    from rich.table import Table

    table = Table("host", "slots", box=None, header_style="bold")
    for host in hosts:
        which = f" ({', '.join(map(str, host.devices))})" if host.devices else ""
        table.add_row(host.name, f"{host.slots}{which}")
    terminal.show(table)
    terminal.say(
        f"{number_of(len(hosts), 'host')}, {number_of(sum(h.slots for h in hosts), 'slot')}"
    )


@app.command("check")
def check(
    hostfile: Hostfile = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    output: options.Output = None,
    master_port: options.MasterPort = None,
    json: options.Json = False,
) -> None:
    """Check that all hosts can train together, and show the fix for each problem.

    [dim]Examples:[/dim]

        dslm hosts check hostfile

        dslm hosts check hostfile -o /shared/runs --json
    """
    from dslm.reach.checks import wrong
    from dslm.reach.preflight import DEFAULT_PORT, Requirements, preflight

    hosts = _hosts(hostfile, include, exclude)
    requirements = Requirements(
        run=(output or Path("runs")).absolute(), port=master_port or DEFAULT_PORT
    )
    with terminal.people().status(f"asking {number_of(len(hosts), 'host')}"):
        found = preflight(hosts, requirements)
    if json:
        terminal.write_json(
            {
                "ok": found.ok,
                "master_address": found.master_address,
                "interfaces": dict(found.interfaces),
                "hosts_without_run_dir": list(found.hosts_without_run_dir),
                "seconds": round(found.seconds, 3),
                "checks": [asdict(result) for result in found.results],
            }
        )
    else:
        from dslm.cli.screens.preflight import show_preflight

        show_preflight(hosts, found)
    red = wrong(found.results)
    if red:
        raise PreflightError(
            f"{number_of(len(red), 'check')} failed on "
            f"{', '.join(dict.fromkeys(result.host for result in red))}",
            hint=red[0].fix,
        )


def _hosts(hostfile: str | None, include: str | None, exclude: str | None) -> list[Host]:
    import os

    from dslm.cluster.hostfile import load_hosts
    from dslm.cluster.select import select
    from dslm.launch.sites import allocation

    if hostfile is not None:
        return list(select(load_hosts(hostfile), include=include, exclude=exclude))
    given = allocation(os.environ)
    if given is None:
        raise HostfileError(
            "no hostfile is given, and this is not inside a batch job",
            where=Where(key="HOSTFILE"),
            hint="`dslm hosts show FILE`, or `w1:4,w2:4`",
        )
    return list(select(given, include=include, exclude=exclude))
