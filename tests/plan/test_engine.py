"""The plan's memory against the real engine on two CPU ranks: a small part of the benchmark.

`make bench-planner` measures a hundred; these have each stage, each offload, both precisions,
recomputation, accumulation and adapters once, and a few architectures and optimizers that nobody
made a formula for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks import planner_memory, planner_others
from benchmarks.planner_architectures import ARCHITECTURES

# without AVX-512 a product in bf16 takes a CPU sixty times as long as one in fp32
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_plan_is_close_to_what_deepspeed_really_keeps() -> None:
    chosen = [
        ("llama", 0, "none", False, 1, "fp32", 1, 0), ("gpt2", 1, "none", True, 1, "bf16", 2, 0),
        ("gpt2", 2, "optimizer", False, 1, "bf16", 1, 0),
        ("llama", 3, "all", False, 1, "bf16", 1, 0),
    ]  # fmt: skip
    configurations = [dict(zip(planner_memory.KEYS, row, strict=True)) for row in chosen]
    names = {"olmoe", "t5", "vit"}
    others = planner_others.configurations()
    configurations += [one for one in others if one["architecture"] in names][:3]
    for setting in ("optimizer.name=muon", "lora.target_modules=[q_proj]"):
        configurations.append(next(o for o in others if setting in o.get("settings", ())))
    rows = planner_memory.run(configurations)
    assert len(rows) == len(configurations) == len(chosen) + 5
    found = [abs(error) for error in planner_memory.errors(rows)]
    assert planner_memory.within_bounds(found), planner_memory.table(rows)


FEW_BITS: tuple[tuple[Any, ...], ...] = (
    ("llama", 0, "none", False, 2, "bf16", 1, 8, "nf4"),
    ("llama", 2, "none", True, 2, "fp32", 1, 8, "nf4"),
    ("qwen3", 3, "none", False, 2, "bf16", 1, 8, "nf4"),
    ("llama", 1, "none", False, 2, "bf16", 2, 8, "int8"),
)


def in_few_bits(folder: Path) -> list[dict[str, Any]]:
    """Configurations of models in few bits, which are loaded: their folders are made."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found = []
    for *row, bits in FEW_BITS:
        one = dict(zip(planner_memory.KEYS, row, strict=True))
        model = folder / one["architecture"]
        if not model.is_dir():
            sizes = dict(ARCHITECTURES[one["architecture"]])
            config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
            AutoModelForCausalLM.from_config(config).save_pretrained(model)
        loaded = ["model.init=pretrained", f"model.name={model}"]
        found.append({**one, "settings": [*loaded, f"quantize={bits}"]})
    return found


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_so_is_one_of_a_model_in_few_bits(tmp_path: Path) -> None:
    configurations = in_few_bits(tmp_path)
    rows = planner_memory.run(configurations)
    assert len(rows) == len(configurations)
    found = [abs(error) for error in planner_memory.errors(rows)]
    assert planner_memory.within_bounds(found), planner_memory.table(rows)
