"""A checkpoint of somebody else's runs no code, whatever is in it, unless its user says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dslm.errors import InputError, RunFailed
from dslm.host.network import free_port
from dslm.lifecycle.resume import convert
from dslm.run.checkpoints import complete_checkpoints
from dslm.worker.zero_tensors import stored_tensors
from tests.conftest import DSLM
from tests.support.warm import warm_dslm
from tests.worker.conftest import SMALL, Train
from tests.worker.hostile import Touch, plant, sign_again

pytestmark = pytest.mark.slow
STAGES = (0, 1, 2, 3)


def _unfinished(trained: Train, folder: Path, stage: int) -> Path:
    """A run that was killed after its last checkpoint, as somebody else may send it."""
    run = shutil.copytree(trained(ranks=2, parallel__zero_stage=stage), folder / "run")
    events = run / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(line for line in lines if '"end"' not in line))
    return run


def _checkpoint(run: Path) -> Path:
    return complete_checkpoints(run / "checkpoints")[-1].path


def _train(
    run: Path, stage: int, *options: str, ranks: int = 2
) -> subprocess.CompletedProcess[str]:
    argv = [*warm_dslm(), "train", "quickstart", "-o", str(run), "--num-gpus", str(ranks), *options]
    for key, value in {**SMALL, "parallel.zero_stage": stage}.items():
        argv += ["-s", f"{key}={value}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("stage", STAGES)
def test_a_strangers_run_is_not_gone_on_with_when_that_runs_code(
    trained: Train, tmp_path: Path, stage: int
) -> None:
    run = _unfinished(trained, tmp_path, stage)
    checkpoint = _checkpoint(run)
    files = sorted(f for f in checkpoint.rglob("*") if f.suffix in (".pt", ".pth"))
    assert len(files) >= (3 if stage == 0 else 5)
    mark = tmp_path / "touched"
    for number, file in enumerate((files[0], files[-1])):
        whole = file.read_bytes()
        plant(file, Touch(mark))
        sign_again(checkpoint)
        done = _train(run, stage, ranks=(2, 1)[number])  # as it is, and converted
        assert done.returncode == 2, done.stderr
        assert file.name in done.stderr
        assert "io.open" in done.stderr
        assert "--trust-checkpoint" in done.stderr
        assert not mark.exists()
        file.write_bytes(whole)
    assert len(json.loads((run / "manifest.json").read_text())["attempts"]) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_neither_export_nor_conversion_runs_what_looks_harmless(
    trained: Train, tmp_path: Path, stage: int
) -> None:
    run = _unfinished(trained, tmp_path, stage)
    checkpoint = _checkpoint(run)
    mark = tmp_path / "touched"
    for file in sorted(checkpoint.glob("global_step*/*.pt")):
        plant(file, Touch(mark, through_torch=True))
    sign_again(checkpoint)
    if stage:
        with pytest.raises(RunFailed, match="could not be converted"):
            convert(
                complete_checkpoints(run / "checkpoints")[-1],
                tmp_path / "universal",
                tmp_path / "log",
            )
        assert "weights_only" in (tmp_path / "log").read_text().lower()
    with pytest.raises(InputError, match="not a file of tensors"):
        stored_tensors(checkpoint, stage)
    argv = [*warm_dslm(), "export", str(run), "-o", str(tmp_path / "model")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "is not a file of tensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()
    assert not mark.exists()


def test_ranks_load_tensors_only_at_every_stage(tmp_path: Path) -> None:
    argv = [sys.executable, "-P", "-m", "tests.worker.hostile", str(tmp_path), str(free_port())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    touched = json.loads(done.stdout.splitlines()[-1])
    assert touched["loaded"] == ["0", "1", "2", "3"]
    assert len(touched["freely"]) >= 7, "the planted calls are made where nothing hinders them"
    assert touched["tensors only"] == []


def test_a_rank_refuses_what_the_launcher_could_not_know_and_trust_loads_it(
    trained: Train, tmp_path: Path
) -> None:
    run = _unfinished(trained, tmp_path, 2)
    checkpoint = _checkpoint(run)
    mark = tmp_path / "touched"
    for file in sorted(checkpoint.glob("global_step*/*.pt")):
        plant(file, Touch(mark, through_torch=True))
    sign_again(checkpoint)
    done = _train(run, 2)
    assert done.returncode == 1, done.stderr
    assert "more than tensors" in done.stderr
    assert "--trust-checkpoint" in done.stderr
    assert not mark.exists()
    done = _train(run, 2, "--trust-checkpoint")
    assert done.returncode == 0, done.stderr
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "latest"), (b"../elsewhere", "latest"), (b"/tmp/elsewhere", "latest")],
)
def test_states_outside_of_the_checkpoint_are_not_loaded(
    trained: Train, tmp_path: Path, content: bytes, said: str
) -> None:
    run = _unfinished(trained, tmp_path, 2)
    checkpoint = _checkpoint(run)
    (checkpoint / "latest").write_bytes(content)
    sign_again(checkpoint)
    done = _train(run, 2)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    with pytest.raises(InputError, match="latest"):
        stored_tensors(checkpoint, 2)


@pytest.mark.parametrize("held", [[], {}, {"module": 3}, {"module": {"w": 3}}, {"module": None}])
@pytest.mark.parametrize("stage", [2, 3])
def test_states_that_deepspeed_never_wrote_are_said_to_be_so(
    tmp_path: Path, held: object, stage: int
) -> None:
    (tmp_path / "latest").write_text("global_step1")
    (tmp_path / "global_step1").mkdir()
    torch.save(held, tmp_path / "global_step1" / "mp_rank_00_model_states.pt")
    with pytest.raises(InputError):
        stored_tensors(tmp_path, stage)


def test_merging_asks_before_it_runs_the_code_of_a_strangers_base_model(
    trained: Train, tmp_path: Path
) -> None:
    run = _unfinished(trained, tmp_path, 2)
    base = tmp_path / "base"
    base.mkdir()
    mark = tmp_path / "touched"
    (base / "code.py").write_text(f"open({str(mark)!r}, 'w')")
    (base / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}})
    )
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["lora"] = {"rank": 4}
    recipe["model"] |= {"name": str(base), "init": "pretrained", "trust_remote_code": True}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    argv = [*warm_dslm(), "export", str(run), "-o", str(tmp_path / "model"), "--merge"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "--trust-checkpoint" in done.stderr
    assert not mark.exists()
    done = subprocess.run([*argv[:-1], "--trust-checkpoint"], capture_output=True, text=True)
    assert done.returncode == 2, "an option without effect is an error"


def test_modules_in_the_current_folder_stand_for_no_library(trained: Train, tmp_path: Path) -> None:
    run = trained(ranks=2, parallel__zero_stage=2)
    mark = tmp_path / "touched"
    for name in ("torch", "dslm", "json", "transformers", "huggingface_hub"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')")
    argv = [str(DSLM), "export", str(run), "-o", str(tmp_path / "model")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
