"""Layers shared by ranks: what DeepSpeed's AutoTP leaves split when a forward pass is over."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import groups

from dslm.worker.layout.ranks import Layout


def whole_logits(logits: torch.Tensor, layout: Layout, engine: Any) -> torch.Tensor:
    """Logits over all classes, of those over the part of them that each rank of a group has.

    Args:
        logits: (…, part of the classes), or whole already.
        layout: who shares.
        engine: whose they are.
    """
    if layout.tensor == 1:
        return logits
    if engine.module.get_output_embeddings() is None:  # classes of a task, which nobody splits
        return logits
    if logits.shape[-1] == engine.module.config.get_text_config().vocab_size:
        return logits
    group = groups.get_tensor_model_parallel_group()
    size = torch.tensor([logits.shape[-1]], device=logits.device)
    sizes = [torch.empty_like(size) for _ in range(layout.tensor)]
    dist.all_gather(sizes, size, group=group)
    widths = [int(each) for each in sizes]
    padded = torch.nn.functional.pad(logits, (0, max(widths) - logits.shape[-1])).contiguous()
    parts = [torch.empty_like(padded) for _ in range(layout.tensor)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[..., :width] for part, width in zip(parts, widths, strict=True)], dim=-1)
