"""A run directory that version 0.1 wrote is resumed and exported, to what 0.1 itself made of it."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dslm.run.directory import RunDirectory
from dslm.run.documents import CheckpointManifest, read_document
from dslm.run.history import Status, read_history
from dslm.run.manifest import read_manifest
from tests.conftest import Dslm
from tests.support.warm import warm_dslm

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A copy of a run that was killed, restarted and stopped at step 56 of 120."""
    shutil.copytree(FROZEN / "stopped", tmp_path / "runs" / "stopped")
    for name in ("tiny.yaml", "items.jsonl"):
        shutil.copy(FROZEN / name, tmp_path)
    return tmp_path / "runs" / "stopped"


@pytest.mark.slow
def test_it_is_resumed_by_its_name_and_ends_with_the_losses_of_one_that_was_never_stopped(
    stopped: Path,
) -> None:
    argv = [*warm_dslm(), "train", "tiny.yaml", "-o", stopped.name, "--resume"]
    done = subprocess.run(
        argv, cwd=stopped.parents[1], capture_output=True, text=True, timeout=300,
        env={**os.environ, "XDG_CACHE_HOME": str(stopped.parents[1] / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from step 56" in done.stderr
    history = read_history(RunDirectory(stopped))
    assert (history.status, history.attempts) == (Status.DONE, 3)
    assert read_manifest(RunDirectory(stopped)).folder == str(stopped.parents[1])  # paths: from it
    whole = read_history(RunDirectory(FROZEN / "done"))
    expected = {step.step: step.loss for step in whole.steps}
    found = {step.step: step.loss for step in history.steps}
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        if step != 60:  # a mean of steps 56 to 60 there, of 57 to 60 here
            assert found[step] == pytest.approx(loss, abs=1e-6), step
    old = load_file(FROZEN / "done" / "model" / "model.safetensors")
    new = load_file(stopped / "model" / "model.safetensors")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor)


@pytest.mark.slow
def test_it_is_exported(warm: Dslm, stopped: Path) -> None:
    done = warm("export", "stopped", "--step", "56", "-o", "model")
    assert done.returncode == 0, done.stderr
    card = (stopped.parents[1] / "model" / "README.md").read_text()
    assert "- steps: 56" in card
    assert "- training loss: 2.7158" in card


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def _foreign(file: Path) -> None:
    """A pickle of the same size that would make a file if it were executed."""
    touch = f"open({str(file.parents[4] / 'executed')!r}, 'w')"
    evil = pickle.dumps(_Evil(touch))
    file.write_bytes(evil.ljust(file.stat().st_size, b"\0"))


class _Evil:
    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return eval, (self._code,)


@pytest.mark.parametrize("damage", [_flip, _garbage, _foreign])
def test_a_checkpoint_that_is_not_as_it_was_written_is_not_exported(
    warm: Dslm, stopped: Path, damage: Callable[[Path], None]
) -> None:
    name = "global_step56/mp_rank_00_model_states.pt"
    damage(stopped / "checkpoints" / "step-56" / name)
    done = warm("export", "stopped", "-o", "model")
    assert done.returncode == 2
    assert f"the checkpoint of step 56 is damaged: {name}" in done.stderr
    assert "--skip-verify" in done.stderr
    assert "wrong numbers" in done.stderr
    assert not (stopped.parents[1] / "model").exists()
    forced = warm("export", "stopped", "-o", "model", "--skip-verify")
    assert not (stopped.parents[1] / "executed").exists()
    assert "Traceback" not in forced.stderr
    assert "no answer" not in forced.stderr
    if damage is _flip:
        assert forced.returncode == 0, forced.stderr
    else:
        assert forced.returncode in (1, 2)
        assert name.rpartition("/")[2] in forced.stderr
        assert not (stopped.parents[1] / "model").exists()


def test_an_older_checkpoint_that_is_sound_is_named(warm: Dslm, stopped: Path) -> None:
    folder = stopped / "checkpoints"
    shutil.copytree(folder / "step-56", folder / "step-60")
    manifest = folder / "step-60" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 56', '"step": 60'))
    assert read_document(CheckpointManifest, manifest).step == 60
    _flip(folder / "step-60" / "rng_state_0.pth")
    done = warm("export", "stopped", "-o", "model")
    assert done.returncode == 2
    assert "`--checkpoint 56` is sound" in done.stderr
