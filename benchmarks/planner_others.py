"""Configurations of the engine that no formula was ever made for.

Architectures that no preset has, other optimizers, changed sizes of buckets, three micro batches a
step, odd ones, adapters on some modules: `python -m benchmarks.planner_others FILE` measures those
whose numbers aren't in the file yet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import planner_memory

_KEYS = ("architecture", "zero_stage", "offload", "activation_checkpointing", "micro", "precision")
_ZERO = "deepspeed.zero_optimization"
_Row = tuple[str, int, str, bool, int, str]
# architectures
_ARCHITECTURES: tuple[tuple[_Row, dict[str, Any]], ...] = (
    (("phi3", 2, "none", False, 3, "bf16"), {}),
    (("phi", 3, "none", False, 3, "bf16"), {}),
    (("falcon", 1, "none", False, 2, "bf16"), {}),
    (("olmoe", 3, "none", False, 2, "bf16"), {}),
    (("bloom", 0, "none", False, 3, "fp32"), {}),
    (("gemma2", 2, "none", True, 3, "bf16"), {}),
    (("opt", 3, "none", False, 5, "bf16"), {}),
    (("stablelm", 1, "none", True, 3, "fp32"), {}),
    (("starcoder2", 2, "optimizer", False, 3, "bf16"), {}),
    (("gptj", 3, "optimizer", False, 2, "bf16"), {}),
    (("cohere", 2, "none", False, 3, "bf16"), {"accumulation": 3}),
    (("granite", 3, "all", True, 3, "bf16"), {}),
    (("mpt", 1, "none", False, 2, "bf16"), {"accumulation": 3}),
    (("deepseek_v2", 2, "none", False, 2, "bf16"), {"documents": 1}),
    (("bert", 2, "none", False, 3, "bf16"), {}),
    (("bert", 0, "none", False, 3, "fp32"), {}),
    (("t5", 1, "none", False, 3, "bf16"), {}),
    (("t5", 3, "none", True, 3, "fp32"), {}),
    (("bart", 2, "none", False, 3, "bf16"), {}),
    (("vit", 1, "none", False, 5, "bf16"), {}),
    (("deberta-v2", 2, "none", False, 3, "fp32"), {}),
    (("electra", 0, "none", False, 7, "bf16"), {}),
    (("starcoder2", 3, "none", False, 1, "bf16"), {"accumulation": 3}),
    (("opt", 2, "none", False, 5, "bf16"), {"accumulation": 3}),
)
_OPTIMIZERS: tuple[tuple[_Row, str], ...] = (
    (("phi3", 1, "none", False, 3, "bf16"), "adafactor"),
    (("llama", 0, "none", False, 2, "fp32"), "adafactor"),
    (("qwen3", 3, "none", False, 2, "bf16"), "adafactor"),
    (("phi3", 2, "none", False, 3, "bf16"), "sgd"),
    (("falcon", 0, "none", False, 2, "fp32"), "sgd"),
    (("llama", 1, "none", False, 2, "bf16"), "muon"),
    (("phi3", 2, "none", False, 3, "bf16"), "muon"),
    (("qwen3", 3, "none", False, 2, "bf16"), "muon"),
    (("phi3", 2, "optimizer", False, 3, "bf16"), "lion"),
    (("llama", 3, "optimizer", False, 2, "bf16"), "lion"),
    (("stablelm", 2, "none", False, 3, "fp32"), "adam"),
)
_SETTINGS: tuple[tuple[_Row, tuple[str, ...]], ...] = (
    (("phi3", 2, "none", False, 3, "bf16"), (f"{_ZERO}.reduce_bucket_size=200000",)),
    (("qwen3", 3, "none", False, 3, "bf16"), (f"{_ZERO}.reduce_bucket_size=5000000",)),
    (("llama", 1, "none", False, 3, "fp32"), (f"{_ZERO}.reduce_bucket_size=300000",)),
    (("llama", 3, "none", False, 3, "bf16"), (f"{_ZERO}.sub_group_size=1000000",)),
    (("llama", 3, "optimizer", False, 2, "bf16"), ("parallel.super_offload=true",)),
    (("gpt2", 3, "all", True, 1, "bf16"), ("parallel.super_offload=true",)),
    (("qwen3", 3, "optimizer", False, 2, "fp32"), ("parallel.super_offload=true",)),
    (("llama", 1, "optimizer", False, 1, "bf16"), ("parallel.zenflow=true",)),
    (("gpt2", 2, "optimizer", False, 1, "bf16"), ("parallel.zenflow=true",)),
    (("llama", 2, "optimizer", False, 1, "fp32"), ("parallel.zenflow=true",)),
)
_ADAPTERS: tuple[tuple[_Row, int, str], ...] = (
    (("llama", 2, "none", False, 3, "bf16"), 8, "q_proj,v_proj"),
    (("qwen3", 3, "none", False, 3, "bf16"), 16, "q_proj"),
    (("qwen3", 3, "none", False, 3, "bf16"), 16, "v_proj"),
    (("qwen3", 3, "none", False, 3, "bf16"), 16, ""),
    (("qwen3", 3, "none", True, 3, "bf16"), 16, "q_proj"),
    (("falcon", 3, "none", False, 3, "bf16"), 16, "dense_4h_to_h"),
    (("phi3", 1, "none", False, 3, "bf16"), 8, "qkv_proj"),
    (("falcon", 0, "none", False, 3, "fp32"), 8, ""),
    (("starcoder2", 3, "none", True, 3, "bf16"), 8, "c_fc"),
)


def configurations() -> list[dict[str, Any]]:
    """All of them."""
    found = [{**_row(row), **more} for row, more in _ARCHITECTURES]
    found += [{**_row(row), "settings": [f"optimizer.name={name}"]} for row, name in _OPTIMIZERS]
    found += [{**_row(row), "settings": list(settings)} for row, settings in _SETTINGS]
    for row, rank, modules in _ADAPTERS:
        chosen = {"settings": [f"lora.target_modules=[{modules}]"]} if modules else {}
        found.append({**_row(row), "lora": rank, **chosen})
    return found


def _row(row: _Row) -> dict[str, Any]:
    return dict(zip(_KEYS, row, strict=True))


def measured(file: Path, *, minutes: float = 9.0) -> list[dict[str, Any]]:
    """Measure what a file doesn't have yet, for so long; all rows that it has."""
    return planner_memory.measured(file, configurations(), minutes=minutes)


if __name__ == "__main__":
    print(planner_memory.table(measured(Path(sys.argv[1]))))
