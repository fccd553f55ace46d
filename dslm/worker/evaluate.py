"""Evaluation: the mean loss over all predicted tokens of the evaluation samples.

The mean is over tokens, not over batches, so it doesn't depend on the number of ranks. Every rank
makes the same number of forward passes (ZeRO-3 gathers parameters in each): where samples run out,
the first one is repeated and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

Collate = Callable[[list[Any]], dict[str, torch.Tensor]]


def evaluate(
    model: torch.nn.Module,
    dataset: Dataset[Any],
    collate: Collate,
    *,
    micro_batch: int,
    device: torch.device,
    shifted: bool,
) -> dict[str, float]:
    """Evaluate.

    Args:
        model: the DeepSpeed engine; its output holds `logits`.
        dataset: samples with `labels`; -100 is not predicted.
        collate: makes a batch of samples.
        micro_batch: samples in a forward pass of a rank.
        device: where the batch goes.
        shifted: whether a token is predicted from those before it (causal models).

    Returns:
        `loss`, nats per token; `perplexity`, its exponential; `tokens`, how many were predicted.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    count = len(dataset)  # type: ignore[arg-type]
    total = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, count, micro_batch * world_size):
            indices = range(start + rank, start + micro_batch * world_size, world_size)
            batch = collate([dataset[i if i < count else 0] for i in indices])
            batch = {name: value.to(device) for name, value in batch.items()}
            labels = batch.pop("labels")
            labels[[i >= count for i in indices]] = -100
            logits = model(**batch).logits
            if shifted:
                logits, labels = logits[:, :-1], labels[:, 1:]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, -2).float(), labels.flatten(), reduction="sum"
            )
            total += torch.stack([losses.double(), (labels != -100).sum().double()])
    if was_training:
        model.train()
    dist.all_reduce(total)
    loss = (total[0] / total[1].clamp(min=1)).item()
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "tokens": total[1].item(),
    }
