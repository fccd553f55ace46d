"""`dslm runs`: what ran, what runs, and how to stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import options, terminal

app = typer.Typer(
    help="List, show, watch and stop runs.", no_args_is_help=True, rich_markup_mode="rich"
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the runs are.")] = Path(
        "runs"
    ),
    json: options.Json = False,
) -> None:
    """List the runs below a folder.

    [dim]Example:[/dim] dslm runs list
    """
    from dslm.run.summary import find_runs, summarize

    summaries = [summarize(run) for run in find_runs(folder)]
    if json:
        terminal.write_json([summary.document() for summary in summaries])
        return
    if not summaries:
        terminal.say(f"no runs below {folder}; `dslm train quickstart` makes one")
        return
    from rich.table import Table

    from dslm.units import render_seconds

    table = Table(
        "run", "status", "step", "loss", "eval loss", "time", box=None, header_style="bold"
    )
    for summary in summaries:
        table.add_row(
            Path(summary.path).name,
            summary.status,
            f"{summary.step}/{summary.steps or '?'}",
            "-" if summary.loss is None else f"{summary.loss:.4f}",
            "-" if summary.eval_loss is None else f"{summary.eval_loss:.4f}",
            "-" if summary.seconds is None else render_seconds(summary.seconds),
        )
    terminal.show(table)


@app.command("show", no_args_is_help=True)
def show(run: RunArgument, json: options.Json = False) -> None:
    """Show what a run did, and why it failed if it did.

    [dim]Example:[/dim] dslm runs show runs/quickstart-20260101-120000
    """
    from dslm.run.summary import open_run, summarize

    directory = open_run(run)
    summary = summarize(directory)
    if json:
        terminal.write_json(summary.document())
        return
    from rich.table import Table

    from dslm.units import render_seconds

    table = Table(box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in summary.document().items():
        if value is None or name in ("error", "failure", "restarts"):
            continue  # those have a table and a panel of their own
        shown = f"{value:.1%}" if name == "goodput" else str(value)
        shown = render_seconds(value) if name == "seconds" else shown
        table.add_row(name.replace("_", " "), shown)
    if directory.model.is_dir():
        table.add_row("model", str(directory.model))
    table.add_row("logs", str(directory.path / "logs"))
    terminal.show(table)
    if summary.restarts:
        story = Table(
            "attempt", "why", "from step", "ranks", "steps lost", "time lost",
            box=None, header_style="bold",
        )  # fmt: skip
        for again in summary.restarts:
            story.add_row(
                str(again["attempt"]),
                str(again["cause"]),
                str(again["step"]),
                str(again["world_size"]),
                str(again["lost_steps"]),
                render_seconds(float(again["lost_seconds"])),
            )
        terminal.show(story)
    if summary.failure is not None:
        from dslm.cli.failure import panel

        terminal.show(panel(summary.failure, run))


@app.command("watch", no_args_is_help=True)
def watch(run: RunArgument) -> None:
    """Follow a run that was started elsewhere, until it ends; Ctrl-C leaves it running.

    [dim]Example:[/dim] dslm runs watch runs/quickstart-20260101-120000
    """
    import time

    from dslm.cli.progress import RunScreen
    from dslm.run.events import read_events
    from dslm.run.summary import open_run

    directory = open_run(run)
    offset, ended = 0, False
    with RunScreen(terminal.people(), name=directory.path.name) as screen:
        while not ended:
            events, offset = read_events(directory.events, offset)
            for event in events:
                screen.event(event)
            last = events[-1] if events else {}
            ended = last.get("event") == "end" or (
                last.get("event") == "error" and not last.get("again")
            )
            time.sleep(0.5)


@app.command("stop", no_args_is_help=True)
def stop(run: RunArgument) -> None:
    """Ask a run to save a checkpoint and stop after its current step.

    [dim]Example:[/dim] dslm runs stop runs/quickstart-20260101-120000
    """
    from dslm.run.summary import open_run, summarize

    directory = open_run(run)
    status = summarize(directory).status
    if status != "unfinished":
        terminal.say(f"{directory.path.name} is {status} already")
        return
    directory.stop_request.touch()
    terminal.say(f"asked {directory.path.name} to stop; `dslm runs watch {run}` follows it")
