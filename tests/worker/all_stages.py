"""One process that carries a training between all stages, in fp32 and in bf16: prints losses."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import deepspeed
import torch

from dslm.worker.layout.whole import WholeState

STEPS = 3


def engine_at(stage: int, precision: str) -> Any:
    """An engine of a small model, always with the same weights at first."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(7, 13), torch.nn.Tanh(), torch.nn.LayerNorm(13), torch.nn.Linear(13, 5)
    )
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "torch_adam": True}},
        "bf16": {"enabled": precision == "bf16"},
    }
    return deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]


def losses(engine: Any, first: int, precision: str) -> list[float]:
    """Losses of some steps, the first of which has this number."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    found = []
    for step in range(first, first + STEPS):
        generator = torch.Generator().manual_seed(step)
        inputs, wanted = (torch.randn(4, n, generator=generator).to(kind) for n in (7, 5))
        loss = (engine(inputs) - wanted).float().square().mean()
        engine.backward(loss)
        engine.step()
        found.append(float(loss))
    return found


def main() -> None:
    """Train at each stage, and go on from it at each."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29531")
    deepspeed.init_distributed("gloo")
    for precision in ("fp32", "bf16"):
        kept = {}
        for stage in range(4):
            engine = engine_at(stage, precision)
            losses(engine, 0, precision)
            whole = WholeState(engine)
            state = {(n, k): whole.read(n, k).clone() for n in whole.names for k in whole.keys}
            kept[stage] = whole.keys, whole.step, state
            went_on = losses(engine, STEPS, precision)
            print(json.dumps([precision, stage, None, went_on]), flush=True)
        for old, new in itertools.product(range(4), repeat=2):
            keys, step, state = kept[old]
            engine = engine_at(new, precision)
            whole = WholeState(engine)
            whole.begin(keys, step)
            for (name, key), value in state.items():
                whole.write(name, key, value)
            print(json.dumps([precision, old, new, losses(engine, STEPS, precision)]), flush=True)


if __name__ == "__main__":
    main()
