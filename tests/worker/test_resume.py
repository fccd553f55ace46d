"""A run that was killed goes on where it was, on any number of ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dslm.run.checkpoints import complete_checkpoints, newest_sound
from dslm.run.events import read_events
from tests.conftest import DSLM
from tests.worker.conftest import SMALL, Train, losses

pytestmark = pytest.mark.slow
LONG = {"duration.steps": 40, "checkpoint.every": 10, "data.eval": 0}
SETTINGS: dict[str, Any] = {key.replace(".", "__"): value for key, value in LONG.items()}


def _argv(run: Path, ranks: int, stage: int, **more: Any) -> list[str]:
    settings = {**SMALL, **LONG, "parallel.zero_stage": stage, **more}
    argv = [str(DSLM), "train", "quickstart", "-o", str(run), "--num-gpus", str(ranks)]
    for key, value in settings.items():
        argv += ["-s", f"{key}={value}"]
    return argv


def _killed_run(folder: Path, ranks: int, stage: int, at: int = 18) -> Path:
    """A run of which a rank was killed with -9 in the middle."""
    run = folder / "run"
    process = subprocess.Popen(
        _argv(run, ranks, stage), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(_steps(run)) < at:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        if "dslm.worker.main" in child.cmdline() and child.environ().get("RANK") == "0":
            os.kill(child.pid, signal.SIGKILL)
            break
    assert process.wait(60) == 1
    return run


def _steps(run: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(run / "events.jsonl")[0] if e["event"] == "step"]


def _whole_curve(run: Path) -> list[float]:
    """The loss of every step, of the last attempt that made it."""
    return [e["loss"] for _, e in sorted({e["step"]: e for e in _steps(run)}.items())]


def _go_on(run: Path, ranks: int, stage: int) -> None:
    done = subprocess.run(_argv(run, ranks, stage), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    attempts = {event["attempt"] for event in _steps(run)}
    assert attempts == {1, 2}
    first = min(event["step"] for event in _steps(run) if event["attempt"] == 2)
    assert first > 1, "it began again instead of going on"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_at_the_same_world_size_the_curve_is_the_same_bit_for_bit(
    trained: Train, tmp_path: Path, stage: int
) -> None:
    undisturbed = trained("--num-gpus", "2", parallel__zero_stage=stage, **SETTINGS)
    run = _killed_run(tmp_path, 2, stage)
    _go_on(run, 2, stage)
    assert _whole_curve(run) == losses(undisturbed)


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [(0, 2, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 2, 4), (3, 2, 1), (3, 1, 2), (3, 2, 4)],
)
def test_at_another_world_size_the_curve_is_the_same(
    trained: Train, tmp_path: Path, stage: int, before: int, after: int
) -> None:
    undisturbed = trained("--num-gpus", "2", parallel__zero_stage=stage, **SETTINGS)
    run = _killed_run(tmp_path, before, stage)
    _go_on(run, after, stage)
    assert _whole_curve(run) == pytest.approx(losses(undisturbed), abs=1e-4)


def test_a_damaged_checkpoint_is_found_and_the_older_one_taken(
    trained: Train, tmp_path: Path
) -> None:
    undisturbed = trained("--num-gpus", "2", parallel__zero_stage=2, **SETTINGS)
    run = _killed_run(tmp_path, 2, 2, at=25)
    newest = complete_checkpoints(run / "checkpoints")[-1]
    victim = max((newest.path / name for name in newest.files), key=lambda p: p.stat().st_size)
    with victim.open("r+b") as stream:
        stream.seek(victim.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    older, problems = newest_sound(run / "checkpoints")
    assert older is not None
    assert older.step < newest.step
    assert victim.name in problems[0]
    _go_on(run, 2, 2)
    details = [e["detail"] for e in read_events(run / "events.jsonl")[0] if e["event"] == "phase"]
    assert any("damaged" in detail for detail in details)
    assert _whole_curve(run) == losses(undisturbed)


def test_another_recipe_or_stage_is_refused_with_the_difference(tmp_path: Path) -> None:
    run = _killed_run(tmp_path, 2, 2)
    for more, said in (
        ({"optimizer.lr": 0.5}, "optimizer.lr"),
        ({"parallel.zero_stage": 3}, "stage 2"),
    ):
        argv = _argv(run, 2, 2) + [part for k, v in more.items() for part in ("-s", f"{k}={v}")]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert len(read_events(run / "events.jsonl")[0]) > 0
