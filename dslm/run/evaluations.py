"""What a run's model scored once it was trained: `evaluations.jsonl`, a line an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dslm.codec import Count, Malformed, Strict, Time, decode, encode, line_of
from dslm.files import append_line
from dslm.run.directory import RunDirectory

FILE = "evaluations.jsonl"
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Strict):
    """Scores by what was evaluated and by metric, and those of the model compared with."""

    time: Time
    model: str
    step: Count | None = None  # of the checkpoint; None: the run's exported model
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    against: str | None = None
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def add_evaluation(run: RunDirectory, evaluation: Evaluation) -> None:
    """Append an evaluation."""
    append_line(run.path / FILE, line_of(encode(evaluation)))


def evaluations_of(run: RunDirectory) -> list[Evaluation]:
    """Return the evaluations of a run, oldest first; lines that can't be read are left out."""
    return _read(run.path / FILE)


def _read(file: Path) -> list[Evaluation]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(decode(Evaluation, line))
        except Malformed:
            continue
    return found


def rows_of(evaluation: Evaluation) -> list[tuple[str, str, float, float | None]]:
    """Return what was evaluated, metric, score, and the other model's score where there is one."""
    return [
        (what, metric, value, evaluation.others.get(what, {}).get(metric))
        for what, metrics in evaluation.scores.items()
        for metric, value in metrics.items()
    ]
