"""A new run starts from the weights of another one, of whichever layout, and of nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dslm.run.directory import RunDirectory
from dslm.run.manifest import read_manifest
from tests.support.warm import warm_dslm
from tests.worker.conftest import SMALL, Train

pytestmark = pytest.mark.slow
SHORT = {"precision": "fp32", "data.eval": 0, "duration.steps": 6, "checkpoint.every": 3}


def _started(run: Path, *options: str, **settings: object) -> subprocess.CompletedProcess[str]:
    given = {**SMALL, **SHORT, **{key.replace("__", "."): v for key, v in settings.items()}}
    argv = [*warm_dslm(), "train", "quickstart", "-o", str(run), *options]
    for key, value in given.items():
        argv += ["-s", f"{key}={value}"]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_COLOR": "1"}
    )


@pytest.mark.parametrize("part", ["", "checkpoints/step-3"], ids=["a run", "a checkpoint"])
def test_the_weights_are_there_at_the_first_step_and_nothing_else(
    trained: Train, tmp_path: Path, part: str
) -> None:
    settings = {key.replace(".", "__"): value for key, value in SHORT.items()}
    old = trained(ranks=2, parallel__zero_stage=1, parallel__tensor=2, **settings)
    new = tmp_path / "new"
    # a rate with which nothing moves
    done = _started(
        new, "--weights-only", str(old / part), optimizer__lr=1e-12, duration__steps=1,
        parallel__ranks=2, parallel__zero_stage=3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_manifest(RunDirectory(new)).attempts[0].resumed_from is None
    source = old / "export" / "step-3" if part else old / "model"
    before, after = (load_file(folder / "model.safetensors") for folder in (source, new / "model"))
    assert before.keys() == after.keys()
    assert max(float((before[n] - after[n]).abs().max()) for n in before) < 1e-7


def test_what_has_no_weights_is_refused(tmp_path: Path) -> None:
    done = _started(tmp_path / "new", "--weights-only", str(tmp_path))
    assert done.returncode == 2
    assert "neither a run nor" in done.stderr
    assert not (tmp_path / "new").exists()
