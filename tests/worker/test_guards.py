"""A training whose numbers can't be right ends, and the last good checkpoint is what is left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dslm.run.checkpoints import complete_checkpoints
from dslm.run.directory import RunDirectory
from dslm.run.events import Error, Step, Trouble
from dslm.run.history import read_history
from dslm.run.skipped import read_skipped
from tests.support.warm import PLANT, warm_dslm
from tests.worker.conftest import SMALL

pytestmark = pytest.mark.slow


def planted(folder: Path, fault: str, **settings: Any) -> tuple[RunDirectory, int, str]:
    """Train with a fault: the run, the exit code, what was said."""
    run = folder / "run"
    given = {**SMALL, "checkpoint.every": 2, "checkpoint.keep": 9, "parallel.ranks": 2}
    argv = [*warm_dslm(), "train", "quickstart", "-o", str(run)]
    for key, value in {**given, "guards.every": 2, **settings}.items():
        argv += ["-s", f"{key}={value}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300,
        env={
            **os.environ, "NO_COLOR": "1", "COLUMNS": "300", PLANT: f"tests.worker.faults:{fault}",
        },
    )  # fmt: skip
    return RunDirectory(run), done.returncode, done.stderr


@pytest.mark.parametrize(
    ("fault", "kind", "since", "good", "stage"),
    [
        ("not_a_number", "not finite", 7, 6, 2),
        ("flipped_bit", "replicas differ", 5, 4, 0),
        ("nothing_to_learn", "nothing learnt", 4, 2, 3),
        ("loss_of_zero", "constant", 3, 2, 1),
    ],
)
def test_trouble_ends_a_run_at_its_last_good_checkpoint(
    fault: str, kind: str, since: int, good: int, stage: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"parallel.zero_stage": stage}
    run, code, said = planted(tmp_path, fault, **settings)
    assert code == 1, said
    history = read_history(run)
    trouble = history.last(Trouble)
    assert trouble is not None, said
    assert (trouble.kind, trouble.since, trouble.good) == (kind, since, good)
    assert trouble.action == "stop"
    assert f"the last good checkpoint is that of step {good}" in said
    assert [c.step for c in complete_checkpoints(run.checkpoints)][-1] == good
    error = history.last(Error)
    assert error is not None
    assert trouble.message in error.cause


def test_a_recipe_may_go_on_all_the_same(tmp_path: Path) -> None:
    warn = {"guards.on_trouble": "warn", "parallel.zero_stage": 0}
    run, code, said = planted(tmp_path, "flipped_bit", **warn)
    assert code == 0, said
    history = read_history(run)
    assert max(step.step for step in history.all(Step)) == 10
    assert {t.action for t in history.all(Trouble)} == {"warn"}
    assert "`model.norm.weight` on ranks 0, 1" in said


def test_a_jump_is_left_out_after_going_back_to_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = {"guards.spike": "rollback", "duration.steps": 22, "checkpoint.every": 4}
    run, code, said = planted(tmp_path, "jumping_loss", **settings)
    assert code == 0, said
    history = read_history(run)
    (trouble,) = history.all(Trouble)
    assert (trouble.kind, trouble.action, trouble.since) == ("jump", "rollback", 19)
    assert (trouble.good, trouble.skipped) == (16, (18,))
    assert read_skipped(run) == (18,)
    steps = {step.step: step for step in history.all(Step)}
    assert max(steps) == 22
    again = [step.attempt for step in history.all(Step) if step.step == 17]
    assert again == [1, 2]
    assert (steps[19].loss or 99) < 10
