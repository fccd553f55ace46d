"""The shipped DeepSpeed configs work by hand, with plain `deepspeed` and the Trainer, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dslm.host.network import free_port
from dslm.presets import preset_names, shipped_folder
from scripts.ds_configs import STRATEGIES

# what needs an accelerator's kernels
ON_CUDA = ("zeropp", "super-offload", "deepcompile")
# its operator takes five minutes of a core to build; `make matrix` trains with it
TO_A_DISK = ("zero3-offload-nvme",)
ON_CPU = tuple(each.name for each in STRATEGIES if each.name not in ON_CUDA + TO_A_DISK)


def test_every_strategy_has_its_file_and_every_file_a_strategy() -> None:
    assert sorted(each.name for each in STRATEGIES) == preset_names("ds_configs", ".json")
    assert set(ON_CUDA) < {each.name for each in STRATEGIES}


@pytest.mark.slow
def test_the_trainer_trains_with_every_config_that_a_cpu_can_run(tmp_path: Path) -> None:
    paths = [f"{shipped_folder('ds_configs') / name}.json" for name in ON_CPU]
    done = subprocess.run(
        [
            sys.executable, str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2",
            "--master_port", str(free_port()), "--no_local_rank",
            str(Path(__file__).with_name("trainer_script.py")), *paths,
        ],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    for name in ON_CPU:
        losses = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(losses) == 3, name
        assert all(3 < loss < 5 for loss in losses), (name, losses)
