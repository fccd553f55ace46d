"""The table of trials, as it grows: strategy, predicted, measured, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dslm.plan.tuning import best
from dslm.units import render_bytes

if TYPE_CHECKING:
    from dslm.lifecycle.values import Values, ValuesTrial
    from dslm.plan.search import Candidate
    from dslm.plan.strategy import Strategy
    from dslm.plan.tuning import Trial

T = TypeVar("T")  # of a trial
W = TypeVar("W")  # of what is tried


class TuningScreen(Generic[T, W]):
    """Shows trials; a context manager. Without a terminal, a line for each trial.

    Args:
        console: where.
        table: lays out trials, what is being tried, and what that does.
        line: says what is being tried.
    """

    def __init__(
        self,
        console: Console,
        table: Callable[[Sequence[T], W | None, str], Table],
        line: Callable[[W], str],
    ) -> None:
        self._console = console
        self._table, self._line = table, line
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._trials: Sequence[T] = ()
        self._trying: W | None = None
        self._doing = ""

    def __enter__(self) -> TuningScreen[T, W]:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._trying = None
        if self._live is not None:
            self._draw()
            self._live.stop()
        else:
            self._console.print(self._table(self._trials, None, ""))

    def trial(self, trials: Sequence[T], trying: W | None) -> None:
        """Take in the trials so far, and what is tried now."""
        self._trials, self._trying, self._doing = tuple(trials), trying, ""
        if self._live is None and trying is not None:
            self._console.print(f"trial {len(trials) + 1}: {self._line(trying)}")
        self._draw()

    def tell(self, detail: str) -> None:
        """Take in what takes a while."""
        self._doing = detail
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            shown = self._table(self._trials, self._trying, self._doing)
            self._live.update(shown, refresh=True)


def trial_line(trying: Candidate) -> str:
    """Say which strategy is tried."""
    return ", ".join(_cells(trying.strategy))


def values_line(trying: Values) -> str:
    """Say which values are tried."""
    return escape(", ".join(f"{key}={value}" for key, value in trying.items()))


def values_table(
    trials: Sequence[ValuesTrial], trying: Values | None = None, doing: str = ""
) -> Table:
    """Lay out trials of values; the one with the lowest loss is marked."""
    from dslm.lifecycle.values import best_values

    table = Table(box=None, header_style="bold")
    table.add_column("trial")
    keys = list(trials[0].values if trials else trying or ())
    for key in keys:
        table.add_column(escape(key), justify="right")
    for name in ("steps", "loss"):
        table.add_column(name, justify="right")
    table.add_column("")
    lowest = best_values(trials)
    for trial in trials:
        why = "above the middle: given up" if trial.given_up else trial.why
        table.add_row(
            str(trial.number), *(escape(str(trial.values[key])) for key in keys),
            str(len(trial.losses)), "-" if trial.loss is None else f"{trial.loss:.4g}",
            "[green]lowest[/]" if trial is lowest else f"[yellow]{escape(why)}[/]",
        )  # fmt: skip
    if trying is not None:
        cells = (escape(str(trying[key])) for key in keys)
        table.add_row(str(len(trials) + 1), *cells, "", "…", f"[dim]{escape(doing)}[/]")
    return table


def trials_table(
    trials: Sequence[Trial], trying: Candidate | None = None, doing: str = ""
) -> Table:
    """Lay out the trials; the fastest is marked."""
    table = Table(box=None, header_style="bold")
    for name in ("trial", "stage", "micro batch", "recomputes", "offload"):
        table.add_column(name)
    for name in ("predicted", "measured", "memory"):
        table.add_column(name, justify="right")
    table.add_column("")
    fastest = best(trials)
    for trial in trials:
        why = "slower: given up" if trial.given_up else trial.why
        mark = "[green]fastest[/]" if trial is fastest else f"[yellow]{escape(why)}[/]"
        table.add_row(
            str(trial.number), *_cells(trial), _seconds(trial.predicted_seconds),
            _seconds(trial.seconds),
            render_bytes(trial.memory_bytes) if trial.memory_bytes else "-", mark,
        )  # fmt: skip
    if trying is not None:
        time = trying.time.step_seconds if trying.time else None
        table.add_row(
            str(len(trials) + 1), *_cells(trying.strategy), _seconds(time), "…", "",
            f"[dim]{escape(doing)}[/]",
        )  # fmt: skip
    return table


def _cells(of: Trial | Strategy) -> tuple[str, str, str, str]:
    return (
        str(of.zero_stage),
        str(of.micro_batch_size),
        "yes" if of.activation_checkpointing else "no",
        of.offload,
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"
