"""A run in a few numbers: its status through restarts, and its goodput."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import append_record
from dslm.run.summary import summarize


def run_of(folder: Path, *events: dict[str, Any]) -> RunDirectory:
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    for number, event in enumerate(events):
        append_record(run.events, {"time": 100.0 + number, "attempt": 1, **event})
    return run


def test_a_failed_attempt_that_another_follows_is_no_failed_run(tmp_path: Path) -> None:
    story = [
        {"event": "start", "steps": 9},
        {"event": "error", "message": "lost", "again": True},
    ]
    assert summarize(run_of(tmp_path / "a", *story)).status == "unfinished"
    final = {"event": "error", "message": "lost", "again": False}
    assert summarize(run_of(tmp_path / "b", *story, final)).status == "failed"


def test_goodput_counts_each_step_once_and_only_the_attempt_that_kept_it(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        {"event": "start", "steps": 8},  # at 100 s
        {"event": "step", "step": 2, "step_seconds": 0.5},
        {"event": "step", "step": 4, "step_seconds": 0.5},
        {"event": "error", "message": "lost", "again": True},
        {"event": "restart", "attempt": 2, "step": 2, "lost_steps": 2, "lost_seconds": 3.0},
        {"event": "resume", "attempt": 2, "step": 2},
        {"event": "step", "attempt": 2, "step": 4, "step_seconds": 1.0},
        {"event": "end", "attempt": 2, "status": "done", "step": 4},  # at 107 s
    )
    summary = summarize(run)
    assert summary.status == "done"
    assert summary.goodput == pytest.approx((2 * 0.5 + 2 * 1.0) / 7, abs=1e-4)
    assert [again["lost_steps"] for again in summary.restarts] == [2]
