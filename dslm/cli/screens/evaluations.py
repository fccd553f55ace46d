"""The table of an evaluation: what was evaluated, the metric, the scores side by side."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from dslm.cli import terminal
from dslm.run.evaluations import Evaluation, rows_of


def table(evaluation: Evaluation) -> Table:
    """Lay out an evaluation."""
    names = [_name(evaluation.model)]
    if evaluation.against is not None:
        names.append(_name(evaluation.against))
    found = Table("evaluated on", "metric", *names, box=None, header_style="bold")
    for column in found.columns[2:]:
        column.justify = "right"
    for what, metric, value, other in rows_of(evaluation):
        cells = [what, metric, _number(value)]
        if evaluation.against is not None:
            cells.append("-" if other is None else _number(other))
        found.add_row(*map(Text, cells))
    return found


def _name(model: str) -> str:
    return str(terminal.shown_path(Path(model))) if Path(model).is_dir() else model


def _number(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
