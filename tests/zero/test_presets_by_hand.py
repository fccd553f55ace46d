"""The shipped DeepSpeed configs work by hand, with plain `deepspeed` and the Trainer, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dslm.host.network import free_port
from dslm.presets import shipped_folder

ON_CPU = (
    "zero0", "zero1", "zero2", "zero3",
    "zero2-offload-optimizer", "zero3-offload-optimizer", "zero3-offload-all",
)  # fmt: skip


@pytest.mark.slow
def test_the_trainer_trains_with_every_config_that_a_cpu_can_run(tmp_path: Path) -> None:
    paths = [str(shipped_folder("ds_configs") / f"{name}.json") for name in ON_CPU]
    done = subprocess.run(
        [
            sys.executable, str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2",
            "--master_port", str(free_port()), "--no_local_rank",
            str(Path(__file__).with_name("trainer_script.py")), *paths,
        ],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (tmp_path / "losses.json").is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert set(losses) == set(paths)
    for path in paths:
        assert len(losses[path]) == 3
        assert all(3 < loss < 5 for loss in losses[path]), (path, losses[path])
