"""What only DeepSpeed's engine refuses, when it is made or steps, the linter finds beforehand.

`DeepSpeedConfig` takes all of these. Each is tried for real, on a CPU, with torch's Adam.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dslm.host.network import free_port
from dslm.zero.lint import lint
from tests.zero.deepspeed_says import refusal

Z = "zero_optimization"
ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
COSINE = {"type": "CosineAnnealingLR", "params": {"T_max": 10}}


def stage(number: int, **values: Any) -> dict[str, Any]:
    return {Z: {"stage": number, **values}}


def sgd(**values: Any) -> dict[str, Any]:
    return {"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}, **values}


def warmup(**params: Any) -> dict[str, Any]:
    return {"scheduler": {"type": "WarmupLR", "params": params}}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("gradient_clipping", {"gradient_clipping": "1.0"}),
    ("gradient_clipping", {"gradient_clipping": None}),
    ("steps_per_print", {"steps_per_print": 0}),
    ("steps_per_print", {"steps_per_print": "10"}),
    ("gradient_predivide_factor", {"gradient_predivide_factor": 0}),
    ("gradient_predivide_factor", {**stage(2), "gradient_predivide_factor": 2.0}),
    ("prescale_gradients", {**stage(2), "prescale_gradients": True}),
    ("prescale_gradients", {**stage(3), "prescale_gradients": True}),
    ("scheduler.type", {**stage(1), "scheduler": COSINE}),
    ("scheduler.type", {**stage(3), "scheduler": COSINE}),
    ("scheduler.type", {"bf16": {"enabled": True}, "scheduler": COSINE}),
    ("scheduler.params", {"scheduler": {"type": "WarmupLR"}}),
    ("scheduler.params.warmup_num_steps", warmup(warmup_num_steps=1e2)),
    ("optimizer.type", {**stage(2), **sgd()}),
    ("optimizer.params.lr", {"optimizer": {**ADAM, "params": {"lr": "1e-3", "torch_adam": True}}}),
    ("optimizer.params.betas", {"optimizer": {**ADAM, "params": {"betas": [0.9]}}}),
    ("data_types.grad_accum_dtype", {**stage(2), "data_types": {"grad_accum_dtype": "bf17"}}),
    ("log_level", {"log_level": "loud"}),
    (f"{Z}.zenflow", stage(2, zenflow={})),
    (f"{Z}.zenflow.select_interval", {
        **stage(2, offload_optimizer={"device": "cpu"}, zenflow={"select_strategy": "step"}),
    }),
]  # fmt: skip
TAKEN: list[dict[str, Any]] = [
    {"scheduler": COSINE},
    sgd(),
    {**stage(2), **sgd(zero_allow_untested_optimizer=True)},
    {**stage(2, reduce_scatter=False), "prescale_gradients": True},
    {**stage(1), "prescale_gradients": True},
    {**stage(2), "steps_per_print": None},
    {"gradient_accumulation_steps": 2.0},
    {**stage(2), "communication_data_type": "BF16"},
    stage(2, reduce_bucket_size=5e8),
    stage(3, sub_group_size=0),
    stage(2, offload_optimizer=None),
    stage(2, offload_optimizer={"device": "none", "buffer_count": 0}),
    {**stage(2), "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    {"_comment": "not read"},
]


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    return {"train_micro_batch_size_per_gpu": 1, "optimizer": ADAM, **config}


@pytest.mark.slow
def test_the_engine_and_the_linter_agree() -> None:
    configs = [_whole(config) for config in [*(row[1] for row in REFUSED), *TAKEN]]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.zero.engine_says"],
        input=json.dumps(configs),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        },
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for (key, _), config, answer in zip(REFUSED, configs, answers, strict=False):
        assert answer, config
        errors = [f for f in lint(config) if f.severity == "error"]
        assert [finding.where.key for finding in errors] == [key]
    for config, answer in zip(configs[len(REFUSED) :], answers[len(REFUSED) :], strict=True):
        assert answer == "", config
        assert [f for f in lint(config) if f.severity == "error"] == []


def test_parsing_alone_takes_most_of_what_the_engine_refuses() -> None:
    taken = [key for key, config in REFUSED if not refusal(_whole(config))]
    assert {"steps_per_print", "prescale_gradients", f"{Z}.zenflow"} <= set(taken)
