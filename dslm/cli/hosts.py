"""`dslm hosts`: what a hostfile says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import options, terminal

app = typer.Typer(help="Show and check hosts.", no_args_is_help=True, rich_markup_mode="rich")


@app.command("show", no_args_is_help=True)
def show(
    hostfile: Annotated[Path, typer.Argument(metavar="HOSTFILE", help="Lines of `HOST slots=N`.")],
    include: options.Include = None,
    exclude: options.Exclude = None,
    json: options.Json = False,
) -> None:
    """Show the hosts and slots that a hostfile gives.

    [dim]Example:[/dim] dslm hosts show hostfile --exclude worker-3
    """
    from dslm.cluster.hostfile import hosts_document, load_hostfile
    from dslm.cluster.select import select

    hosts = select(load_hostfile(hostfile), include=include, exclude=exclude)
    document = hosts_document(hosts)
    if json:
        terminal.write_json(document)
        return
    from rich.table import Table

    table = Table("host", "slots", box=None, header_style="bold")
    for host in hosts:
        table.add_row(host.name, str(host.slots))
    terminal.show(table)
    terminal.say(f"{len(hosts)} hosts, {document['total_slots']} slots")
