"""Every task trains on real data that is on this machine, and its metric moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dslm.run.events import read_events
from tests.worker.conftest import run_dslm

pytestmark = pytest.mark.slow

# task, metric, whether more is better, and what makes it short
TASKS: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("mlm", "loss", False, {"data.max_documents": 40}),
    ("sft", "loss", False, {"data.max_documents": 1000, "evaluation.sample": "null"}),
    ("dpo", "rewards/margins", True, {"data.max_documents": 1000, "batch.global_size": 8}),
    ("seq2seq", "loss", False, {"data.max_documents": 1000}),
    ("classify", "loss", False, {"optimizer.lr": 5e-4}),
    ("vision", "accuracy", True, {"duration.steps": 80, "evaluation.every": 20}),
    ("sequence", "ndcg@10", True, {"data.max_documents": 500}),
]


@pytest.mark.parametrize(("task", "metric", "more", "settings"), TASKS, ids=[t[0] for t in TASKS])
def test_the_metric_of_a_task_moves(
    task: str, metric: str, more: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    short = {"parallel.ranks": 1, "duration.steps": 30, "evaluation.every": 5}
    run = run_dslm(tmp_path, f"quickstart-{task}", {**short, **settings})
    found = [e[metric] for e in read_events(run / "events.jsonl")[0] if e["event"] == "eval"]
    assert len(found) >= 4
    assert found[-1] > found[0] if more else found[-1] < found[0], found
    assert (run / "model" / "config.json").is_file()
