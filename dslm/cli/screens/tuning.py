"""The table of trials, as it grows: strategy, predicted, measured, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dslm.plan.tuning import best
from dslm.units import render_bytes

if TYPE_CHECKING:
    from dslm.plan.search import Candidate
    from dslm.plan.strategy import Strategy
    from dslm.plan.tuning import Trial


class TuningScreen:
    """Shows trials; a context manager. Without a terminal, a line after each trial."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._trials: Sequence[Trial] = ()
        self._trying: Candidate | None = None
        self._doing = ""
        self._said = 0

    def __enter__(self) -> TuningScreen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._trying = None
        if self._live is not None:
            self._draw()
            self._live.stop()
        else:
            self._console.print(trials_table(self._trials))

    def trial(self, trials: Sequence[Trial], trying: Candidate | None) -> None:
        """Take in the trials so far, and what is tried now."""
        self._trials, self._trying, self._doing = tuple(trials), trying, ""
        if self._live is None and trying is not None:
            strategy = trying.strategy
            self._console.print(f"trial {len(trials) + 1}: {', '.join(_cells(strategy))}")
        self._draw()

    def tell(self, detail: str) -> None:
        """Take in what takes a while."""
        self._doing = detail
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(trials_table(self._trials, self._trying, self._doing), refresh=True)


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
        mark = "[green]fastest[/]" if trial is fastest else f"[yellow]{escape(trial.why)}[/]"
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
