"""`dslm launch` gives any script ranks, a DeepSpeed config, logs and a true exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Dslm

SCRIPT = """
import json, os, sys
rank = os.environ["RANK"]
config = os.environ.get("DSLM_DS_CONFIG")
out = {"argv": sys.argv[1:], "world": os.environ["WORLD_SIZE"], "config": config}
open(f"out-{rank}.json", "w").write(json.dumps(out))
print("hello from", rank)
if "--fail" in sys.argv and rank == "1":
    raise ValueError("as asked")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train me.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
def test_every_rank_runs_the_script_with_its_arguments(
    dslm: Dslm, script: Path, tmp_path: Path
) -> None:
    odd = "a b; $(touch pwned) 'x' \"y\""
    done = dslm(
        "launch", str(script), "--num-gpus", "2", "--recipe", "quickstart", "--pass-config",
        "-o", "run", "--", "--name", odd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = str(tmp_path / "run" / "ds_config.json")
    for rank in (0, 1):
        out = json.loads((tmp_path / f"out-{rank}.json").read_text())
        assert out == {
            "argv": ["--name", odd, "--deepspeed", config], "world": "2", "config": config,
        }  # fmt: skip
        log = tmp_path / f"run/logs/attempt-1/rank-{rank}.log"
        assert f"hello from {rank}" in log.read_text()
    assert json.loads(Path(config).read_text())["zero_optimization"]["stage"] == 2
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_a_script_that_fails_on_one_rank_fails(dslm: Dslm, script: Path) -> None:
    done = dslm("launch", str(script), "--num-gpus", "2", "-o", "run", "--", "--fail")
    assert done.returncode == 1
    assert "rank 1" in done.stderr
    assert "as asked" in done.stderr


def test_a_dry_run_writes_nothing(dslm: Dslm, script: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = dslm("launch", str(script), "--recipe", "quickstart", "--dry-run", "--json")
    document = json.loads(done.stdout)
    assert document["command"][-5:-3] == ["dslm.worker.script", "--run"]
    assert document["attempt"]["script"] == str(script)
    assert document["ds_config"]["train_batch_size"] == 16
    assert sorted(tmp_path.iterdir()) == before
