"""`dslm runs`: what ran, what runs, and how to stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import complete, options, terminal
from dslm.errors import OptionError, Where

app = typer.Typer(
    help="List, show, watch and stop runs.", no_args_is_help=True, rich_markup_mode="rich"
)

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run directory, or a name that `runs list` prints.",
        autocompletion=complete.runs,
    ),
]


@app.command("list")
def list_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of the runs.")
    ] = Path("runs"),
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
    from dslm.cli.screens.runs import RunsTable

    terminal.show(RunsTable(summaries, folder))
    for summary in summaries:
        for problem in summary.problems:
            terminal.say(f"{Path(summary.path).name}: could not be read: {problem}")


@app.command("show", no_args_is_help=True)
def show(
    run: RunArgument,
    why: Annotated[
        bool,
        typer.Option("--why", help="After a failure, show which rule of blame fitted which rank."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Show what happened in a run, and why it failed if it did.

    [dim]Example:[/dim] dslm runs show runs/quickstart-20260101-120000 --why
    """
    from dslm.run.history import read_history
    from dslm.run.summary import open_run, summary_of

    history = read_history(open_run(run))
    summary = summary_of(history)
    if why and summary.failure is None:
        raise OptionError(
            f"{history.run.path.name} has not failed: no rule of blame applies",
            where=Where(key="--why"),
        )
    if json:
        if why:
            raise OptionError("`--json` includes it anyway", where=Where(key="--why"))
        terminal.write_json(summary.document())
        return
    from dslm.cli.screens.evaluations import table
    from dslm.cli.screens.runs import run_page
    from dslm.run.evaluations import evaluations_of

    for part in run_page(history, summary, plain=not terminal.shows_unicode()):
        terminal.show(part)
    for evaluation in evaluations_of(history.run):
        terminal.say()
        terminal.show(table(evaluation))
    if summary.failure is not None:
        from dslm.cli.screens.failure import panel, why_table

        terminal.show(panel(summary.failure, terminal.shown_path(history.run.path)))
        if why:
            terminal.show(why_table(summary.failure))
    from dslm.lifecycle.resumable import command_to_resume

    command = command_to_resume(summary)
    if command is not None:
        terminal.write(f"resume with: {command}")  # one line, however wide: to be copied


@app.command("watch", no_args_is_help=True)
def watch(run: RunArgument) -> None:
    """Follow a run that was started elsewhere, until it ends; Ctrl-C leaves it running.

    A run that is over is shown once.

    [dim]Example:[/dim] dslm runs watch runs/quickstart-20260101-120000
    """
    import time

    from dslm.cli.screens.progress import RunScreen
    from dslm.run.events import tail_events
    from dslm.run.lock import owner_of
    from dslm.run.summary import open_run, summarize

    directory = open_run(run)
    name = directory.path.name
    follows = summarize(directory).owner is not None
    offset, unreadable = 0, 0
    with RunScreen(terminal.people(), name=name, follows=follows) as screen:
        while True:
            # asked first: what its owner wrote before it ended is read after that
            owned = follows and owner_of(directory.path) is not None
            found = tail_events(directory.events, offset)
            offset, unreadable = found.offset, unreadable + len(found.unreadable)
            for event in found.events:
                screen.event(event)
            if not owned:
                break
            time.sleep(0.5)
    if unreadable:
        terminal.say(f"{unreadable} lines of {directory.events.name} can't be read")
    terminal.say(f"{name} is {summarize(directory).status}; `dslm runs show {run}` shows it")


@app.command("stop", no_args_is_help=True)
def stop(run: RunArgument) -> None:
    """Ask a run to save a checkpoint and stop after its current step.

    [dim]Example:[/dim] dslm runs stop runs/quickstart-20260101-120000
    """
    from dslm.run.lock import owner_of
    from dslm.run.summary import open_run, summarize

    directory = open_run(run)
    name, status = directory.path.name, summarize(directory).status
    if status != "unfinished":
        terminal.say(f"{name} is already {status}")
        return
    if owner_of(directory.path) is None:
        terminal.say(f"no process trains in {name}: it ended unfinished, after its last event")
        return
    try:
        directory.stop_request.touch()
    except OSError as failure:
        raise OptionError(
            f"the stop request can't be written: {failure.strerror}",
            where=Where(file=directory.stop_request),
        ) from None
    terminal.say(f"asked {name} to stop; `dslm runs watch {run}` follows it")
