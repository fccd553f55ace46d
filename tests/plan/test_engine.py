"""The plan's memory against the real engine on two CPU ranks: a small part of the benchmark.

`make bench-planner` measures sixty-odd; these have each stage, each offload, both precisions,
recomputation, accumulation and adapters once.
"""

from __future__ import annotations

import pytest

from benchmarks import planner_memory

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("warm_asks")
def test_a_plan_is_close_to_what_deepspeed_really_keeps() -> None:
    chosen = [
        ("llama", 0, "none", False, 1, "fp32", 1, 0), ("gpt2", 1, "none", True, 1, "bf16", 2, 0),
        ("gpt2", 2, "optimizer", False, 1, "bf16", 1, 0),
        ("llama", 3, "all", False, 1, "bf16", 1, 0), ("qwen3", 3, "none", False, 4, "bf16", 1, 8),
    ]  # fmt: skip
    configurations = [dict(zip(planner_memory.KEYS, row, strict=True)) for row in chosen]
    for configuration in configurations:
        planner_memory.planned(configuration)  # once here, not in each rank: a model is traced
    rows = planner_memory.run(configurations)
    assert len(rows) == len(chosen)
    found = [abs(error) for error in planner_memory.errors(rows)]
    assert planner_memory.within_bounds(found), planner_memory.table(rows)
