"""Every tracker that the recipe's help names gets the losses, in files below the run directory."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from tests.conftest import DSLM

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 3


def _of_tensorboard(run: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run / "tensorboard"))
    seen.Reload()
    return [scalar.value for scalar in seen.Scalars("train/loss")]


def _of_wandb(run: Path) -> list[float]:
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    text = file.read_bytes().decode("latin-1")
    # each key stands before its value as JSON: in the history's record, and again in the summary's
    found = re.findall(r"train/loss.{1,4}?(\d+\.\d+)", text, re.DOTALL)
    return [float(value) for value in dict.fromkeys(found)]


def _of_mlflow(run: Path) -> list[float]:
    (file,) = run.glob("mlruns/*/*/metrics/loss")
    return [float(line.split()[1]) for line in file.read_text().splitlines()]


def _of_trackio(run: Path) -> list[float]:
    (file,) = (run / "trackio").glob("*.db")
    rows = sqlite3.connect(file).execute("SELECT metrics FROM metrics ORDER BY step").fetchall()
    logs = [json.loads(row) for (row,) in rows]
    return [log["train/loss"] for log in logs if "train/loss" in log]


READERS: dict[str, Callable[[Path], list[float]]] = {
    "tensorboard": _of_tensorboard, "wandb": _of_wandb, "mlflow": _of_mlflow,
    "trackio": _of_trackio,
}  # fmt: skip
INSTALLED = [name for name in READERS if find_spec(name) is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training of a few steps, offline, that all installed trackers follow at once."""
    folder = tmp_path_factory.mktemp("trackers") / "a run"
    sets = [f"duration.steps={STEPS}", "log.every=1", f"log.report_to=[{','.join(INSTALLED)}]",
            "data.eval=0", "evaluation.sample=null", "checkpoint.every=null",
            "parallel.ranks=1"]  # fmt: skip
    argv = [str(DSLM), "train", "quickstart", "-o", str(folder)]
    for setting in sets:
        argv += ["-s", setting]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    yield folder


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_has_the_losses_of_every_step(name: str, run: Path) -> None:
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: pip install 'dslm[{name}]'")
    losses = [step.loss for step in read_history(RunDirectory(run)).steps]
    assert len(losses) == STEPS
    assert READERS[name](run)[:STEPS] == pytest.approx(losses, rel=1e-3)


def test_every_tracker_of_the_help_has_an_extra() -> None:
    text = (ROOT / "dslm" / "recipe" / "schema.py").read_text()
    (named,) = re.findall(r"Trackers as transformers' Trainer has them: ([a-z, ]+)\.", text)
    assert sorted(named.split(", ")) == sorted(READERS)
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{name} = \[", extras, re.MULTILINE) for name in READERS)
