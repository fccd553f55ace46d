"""The plan's memory against the real engine on two CPU ranks: a small part of the benchmark."""

from __future__ import annotations

import pytest

from benchmarks import planner_memory

pytestmark = pytest.mark.slow


def test_a_plan_is_close_to_what_deepspeed_really_keeps() -> None:
    chosen = [
        ("llama", 0, "none", False, 4, "fp32", 1, 0), ("gpt2", 1, "none", True, 2, "bf16", 1, 0),
        ("qwen3", 2, "none", False, 8, "bf16", 1, 0), ("llama", 3, "none", True, 8, "bf16", 1, 0),
        ("gpt2", 2, "optimizer", False, 1, "bf16", 1, 0),
        ("llama", 3, "all", False, 2, "bf16", 1, 0), ("gpt2", 1, "none", True, 2, "bf16", 2, 0),
        ("gpt2", 2, "optimizer", True, 8, "fp32", 1, 0), ("gpt2", 1, "none", True, 8, "fp32", 1, 0),
        ("qwen3", 3, "none", False, 4, "bf16", 1, 8),
    ]  # fmt: skip
    rows = planner_memory.run([dict(zip(planner_memory.KEYS, row, strict=True)) for row in chosen])
    assert len(rows) == len(chosen)
    found = [abs(error) for error in planner_memory.errors(rows)]
    assert planner_memory.within_bounds(found), planner_memory.table(rows)
