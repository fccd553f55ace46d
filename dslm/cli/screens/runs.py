"""Screens of runs: the table of `dslm runs list`, the page of `dslm runs show`.

Summaries in, something for Rich out. Values are shown as they are: what they quote may look like
markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from dslm.cli import terminal
from dslm.cli.screens.answers import in_a_line
from dslm.cli.screens.curve import curve
from dslm.cli.screens.verified import compared
from dslm.run.history import History
from dslm.run.rollouts import Rollout, last_rollouts
from dslm.run.summary import RUNS, RunSummary
from dslm.run.verification import difference, verified_of
from dslm.units import render_count, render_seconds

_WIDE = 100  # columns of a terminal
_BESIDE, _BESIDE_WIDE, _LEAST_NAME = 50, 70, 12  # columns beside a run's name, and of it at least
_ANSWERS, _SHOWN = 4, 200  # answers, and letters of each, on the page of a run


@dataclass(frozen=True, slots=True)
class RunsTable:
    """Runs, a line each; every verb takes the names as they are shown."""

    summaries: Sequence[RunSummary]
    folder: Path

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Leave the loss of evaluations out where a line has no room for it."""
        wide = options.max_width >= _WIDE
        left_out = set() if wide else {"eval loss"}
        room = options.max_width - (_BESIDE_WIDE if wide else _BESIDE)
        longest = max((len(self._name(each)) for each in self.summaries), default=0)
        shown = [name for name in _COLUMNS if name not in left_out]
        table = Table(*shown, box=None, header_style="bold")
        # whole, if it can be: it is typed again, and not at the cost of another column
        table.columns[0].width = min(max(longest, 3), max(room, _LEAST_NAME))
        table.columns[0].overflow = "fold"
        for summary in self.summaries:
            cells = {"run": self._name(summary)} | {
                name: cell(summary) for name, cell in _COLUMNS.items() if cell is not None
            }
            table.add_row(*(Text(cells[name]) for name in shown))
        yield table

    def _name(self, summary: RunSummary) -> str:
        name = Path(summary.path).name
        return name if self.folder == RUNS else str(self.folder / name)


def run_page(history: History, summary: RunSummary, *, plain: bool) -> Iterator[RenderableType]:
    """Lay out what a run did: numbers, curve, restarts, and files that could not be read.

    Args:
        history: the events of the run.
        summary: the same in a few numbers.
        plain: ASCII only.
    """
    table = Table(box=None, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(history, summary):
        table.add_row(name, Text(value))
    yield table
    rewards = [(e.step, r) for e in history.steps if (r := e.metrics.get("reward")) is not None]
    points = [(e.step, e.loss) for e in history.steps if e.loss is not None]
    lines = curve(rewards or points, plain=plain)
    if lines:
        named = "reward" if rewards else "loss"  # the loss of RL says nothing of how good it is
        yield Text("\n".join(["", f" {named} by step", *(f" {line}" for line in lines), ""]))
    answers = last_rollouts(history.run, _ANSWERS)
    if answers:
        yield _answers(answers)
    if summary.restarts:
        yield _restarts(summary)
    for problem in summary.problems:
        yield Text(f"could not be read: {problem}", style="yellow")


def _answers(rollouts: Sequence[Rollout]) -> Table:
    """The last answers that were rewarded."""
    table = Table("step", "prompt", "answer", "reward", box=None, header_style="bold")
    for one in rollouts:
        prompt, answer = map(in_a_line, (one.prompt, one.answer))
        table.add_row(*map(Text, (
            str(one.step), prompt[-_SHOWN:], answer[:_SHOWN], _number(one.reward),
        )))  # fmt: skip
    return table


def _rows(history: History, summary: RunSummary) -> Iterator[tuple[str, str]]:
    folder = terminal.shown_path(history.run.path)
    yield "run", str(folder)
    yield "status", _status(summary)
    if summary.owner is not None:
        yield "trained by", summary.owner
    yield "started", _date(summary.started)
    if summary.seconds is not None:
        yield "took", render_seconds(summary.seconds)
    yield "attempts", str(summary.attempts)
    yield "step", f"{summary.step} of {summary.steps or '?'}"
    if summary.loss is not None:
        yield "loss", _number(summary.loss)
    if summary.eval_loss is not None:
        yield "eval loss", _number(summary.eval_loss)
    reward = history.steps[-1].metrics.get("reward") if history.steps else None
    if reward is not None:
        yield "reward", _number(reward)
    if summary.parameters is not None:
        share = trained_share(summary.parameters, summary.trained_parameters)
        yield "parameters", render_count(summary.parameters) + share
    if summary.goodput is not None:
        yield "goodput", f"{summary.goodput:.1%} of the time went into steps that count"
    proof = _verified(history)
    if proof is not None:
        yield "verified", proof
    if history.run.model.is_dir():
        yield "model", str(folder / "model")
    yield "logs", str(folder / "logs")


def _verified(history: History) -> str | None:
    """Say what was verified of the run's layout, if anything was."""
    found = verified_of(history.run)
    if found is None:
        return None
    return compared(found) if found.same else difference(found)


def trained_share(parameters: int, trained: int | None) -> str:
    """Render how many of the parameters are trained, where not all are."""
    if trained is None or trained == parameters or not parameters:
        return ""
    return f", of which {render_count(trained)} are trained ({trained / parameters:.1%})"


def _restarts(summary: RunSummary) -> Table:
    table = Table(
        "attempt", "why", "from step", "ranks", "steps lost", "time lost",
        box=None, header_style="bold",
    )  # fmt: skip
    for again in summary.restarts:
        table.add_row(*map(Text, (
            str(again.attempt),
            again.cause,
            str(again.step),
            str(again.world_size),
            str(again.lost_steps),
            render_seconds(again.lost_seconds),
        )))  # fmt: skip
    return table


def _status(summary: RunSummary) -> str:
    return "running" if summary.owner is not None else summary.status


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


_COLUMNS: Mapping[str, Callable[[RunSummary], str] | None] = {
    "run": None,  # as the folder names it
    "status": _status,
    "step": lambda summary: f"{summary.step}/{summary.steps or '?'}",
    "loss": lambda summary: _number(summary.loss),
    "eval loss": lambda summary: _number(summary.eval_loss),
    "started": lambda summary: _date(summary.started),
    "time": lambda s: "-" if s.seconds is None else render_seconds(s.seconds),
}
