"""A DeepSpeed training loop as one writes it by hand, for the same model, data and config as a run.

    deepspeed --num_gpus 2 benchmarks/handwritten.py RUN DATA OUT

RUN is a run directory of dslm (its recipe and ds_config.json), DATA the file with the packed
samples, OUT a JSON file that gets the wall-clock time of the end of every step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import deepspeed
import numpy as np
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from dslm.worker.data.packing import packed_sample
from dslm.worker.data.store import Samples


def main() -> None:
    """Train as many steps as the recipe says."""
    run, data, out = (Path(argument) for argument in sys.argv[1:4])
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    config = json.loads((run / "ds_config.json").read_text())
    deepspeed.init_distributed("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    set_seed(recipe["seed"])
    samples = Samples([data], [1.0])
    length = recipe["data"]["sequence_length"]
    sizes = {k: v for k, v in recipe["model"]["architecture"].items() if k != "model_type"}
    with deepspeed.zero.Init(
        config_dict_or_path=config, enabled=config["zero_optimization"]["stage"] == 3
    ):
        model = LlamaForCausalLM(LlamaConfig(**sizes, use_cache=False))
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    micro, accumulation = (
        engine.train_micro_batch_size_per_gpu(),
        engine.gradient_accumulation_steps(),
    )
    order = np.random.default_rng(recipe["seed"]).permutation(len(samples))
    ends = []
    place = 0
    for _ in range(recipe["duration"]["steps"]):
        for _ in range(accumulation):
            indices = order[(place + rank * micro + np.arange(micro)) % len(order)]
            place += micro * world
            rows = [packed_sample(samples[int(index)], length, pad=1) for index in indices]
            batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            loss = engine(**batch).loss
            engine.backward(loss)
            engine.step()
        ends.append(time.time())
    if rank == 0:
        out.write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
