"""Faults of the installed DeepSpeed that the catalogue has and no report names: the proof."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime import utils
from torch._utils import _flatten_dense_tensors


def test_the_norm_of_a_flat_gradient_lacks_what_all_ranks_but_the_first_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `FP16_UnfusedOptimizer.step` takes it (runtime/fp16/unfused_optimizer.py)."""
    monkeypatch.setattr(utils.dist, "all_reduce", lambda tensor, **more: None)  # this rank alone
    part = torch.nn.Parameter(torch.zeros(3, 4))
    part.tensor_model_parallel = True  # type: ignore[attr-defined]
    part.grad = torch.ones(3, 4)

    def norms(rank: int) -> tuple[float, float]:
        mpu: Any = SimpleNamespace(
            get_tensor_model_parallel_rank=lambda: rank, get_model_parallel_group=lambda: None
        )
        flat = utils.get_weight_norm(_flatten_dense_tensors([part.grad]), mpu=mpu)
        marked = torch.nn.Parameter(part.grad.clone())  # type: ignore[union-attr]
        marked.tensor_model_parallel = True  # type: ignore[attr-defined]
        return flat, utils.get_weight_norm([marked], mpu=mpu)

    whole = 12**0.5
    assert norms(0) == pytest.approx((whole, whole))
    assert norms(1) == pytest.approx((0.0, whole))  # whole, if it were right
