"""An optimizer that has made no step: without ZeRO, DeepSpeed's of 16 bits begin with one.

They let the optimizer below make a step with gradients of zero, so that its state is there
(`initialize_optimizer_states` in runtime/fp16/fused_optimizer.py and unfused_optimizer.py, 0.19.8).
That step decays the full-precision weights once, and Adam counts it: its corrections for the first
steps are those of the second and following ones, so the first update is 0.73 of what it should be.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

_STEP = "step"


def undo_first_step(engine: Any) -> None:
    """Undo the step that an engine's optimizer made before the training; not after a resumption."""
    optimizer = getattr(engine, "optimizer", None)
    if isinstance(optimizer, FP16_Optimizer):
        pairs = list(zip(optimizer.fp32_groups_flat, optimizer.fp16_groups_flat, strict=True))
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        pairs = [
            pair
            for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True)
            for pair in zip(masters, weights, strict=True)
        ]
    else:
        return
    with torch.no_grad():
        for master, weight in pairs:
            master.copy_(weight)
    base = optimizer.optimizer
    for holder in (*base.param_groups, *base.state.values()):
        count = holder.get(_STEP)
        if count is not None:
            holder[_STEP] = torch.zeros_like(count) if isinstance(count, torch.Tensor) else 0
