"""The screen at the end of a launch: results and the next command, or the failure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from dslm.cli import terminal
from dslm.cli.screens.failure import headline, panel
from dslm.diagnose.explain import diagnose
from dslm.errors import Interrupted, RunFailed, Where
from dslm.launch.outcome import Status
from dslm.run.events import End
from dslm.run.history import read_history
from dslm.run.manifest import read_manifest
from dslm.run.summary import RunSummary, summarize
from dslm.units import render_seconds

if TYPE_CHECKING:
    from dslm.lifecycle.request import Ended
    from dslm.run.directory import RunDirectory


def show_end(ended: Ended, *, json: bool) -> None:
    """Say how a launch ended.

    Raises:
        RunFailed: it failed.
        Interrupted: it was stopped.
    """
    run, outcome = ended.run, ended.outcome
    summary = summarize(run)
    if outcome.status == Status.FAILED and summary.failure is None:
        # usually it is among the run's events; on a full disk these could not be written
        error = diagnose(run, outcome).event(outcome.attempt, noticed=outcome.noticed)
        summary = replace(summary, status="failed", error=error.message, failure=error)
    if json:
        terminal.write_json(summary.document())
    folder = terminal.shown_path(run.path)
    if outcome.status in (Status.STOPPED, Status.KILLED):
        how = "stopped" if outcome.status == Status.STOPPED else "stopped before it could save"
        raise Interrupted(
            f"the run was {how}, at step {summary.step}",
            where=Where(file=folder),
            hint=_next(ended, folder),
        )
    if outcome.status == Status.FAILED and summary.failure is not None:
        terminal.say(panel(summary.failure, folder))
        raise RunFailed(
            headline(summary.failure), where=Where(file=folder), hint=_next(ended, folder)
        )
    _show_what_was_made(run, summary)


def _next(ended: Ended, folder: Path) -> str:
    """The command to run next: the one that resumes the run, where it can be resumed."""
    show = f"`dslm runs show {folder}` shows this again"
    return f"resume with: {ended.resume}\n      {show}" if ended.resume else show


def _show_what_was_made(run: RunDirectory, summary: RunSummary) -> None:
    folder = escape(str(terminal.shown_path(run.path)))
    end = read_history(run).last(End)
    if end is not None and end.sample:
        terminal.say(Panel(Text(end.sample), title="a sample of the model", expand=False))
    attempt = read_manifest(run).attempts[-1]
    took = render_seconds((attempt.ended or attempt.started) - attempt.started)
    lines = [f"[bold green]done[/] in {took}: {folder}"]
    if summary.loss is not None:
        evaluated = summary.eval_loss
        beside = "" if evaluated is None else f", {evaluated:.4f} on the evaluation data"
        lines.append(f"  loss         {summary.loss:.4f} at step {summary.step}{beside}")
    if run.model.is_dir():
        lines.append(f"  model        {folder}/model   (loads with from_pretrained)")
    if run.checkpoints.is_dir():
        lines.append(f"  checkpoints  {folder}/checkpoints")
    lines.append(f"  next         dslm runs show {folder}")
    terminal.say(terminal.styled("\n".join(lines)))
