"""Evaluation over all ranks: sums over every sample, whatever the number of ranks.

Every rank makes the same number of forward passes (ZeRO-3 gathers parameters in each): where
samples run out, the first one is repeated and not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from dslm.worker.data.packing import IGNORED
from dslm.worker.layout.ranks import Layout
from dslm.worker.layout.sequence import part_of, whole_samples
from dslm.worker.layout.tensor import whole_logits
from dslm.worker.layout.tiles import has_loss_in_tiles, summed_in_tiles
from dslm.worker.metrics import Metric, TokenLoss
from dslm.worker.tasks.base import Collate, Measure


def by_metric(metric: Metric) -> Measure:
    """Return what evaluates a trainer's model by a metric of logits and labels."""

    def measure(
        trainer: Any, samples: Any, collate: Collate, layout: Layout, **settings: Any
    ) -> dict[str, float]:
        device = trainer.args.device
        model = trainer.model_wrapped
        return evaluate(model, samples, collate, metric, layout, device=device, **settings)

    return measure


def evaluate(
    model: torch.nn.Module,
    dataset: Dataset[Any],
    collate: Collate,
    metric: Metric,
    layout: Layout,
    *,
    micro_batch: int,
    device: torch.device,
    on_batch: Callable[[], None],
) -> dict[str, float]:
    """Evaluate; all ranks call and get the same numbers.

    Args:
        model: the DeepSpeed engine, in eval mode; its output holds `logits`.
        dataset: samples with `labels`; -100 is not predicted.
        collate: makes a batch of samples.
        metric: what is made of logits and labels.
        layout: who reads what.
        micro_batch: samples in a forward pass of a rank.
        device: where the batch goes.
        on_batch: called after each forward pass.
    """
    rank, world_size = layout.data_rank, layout.data_size
    count = len(dataset)  # type: ignore[arg-type]
    total = torch.zeros(metric.size, dtype=torch.float64, device=device)
    in_tiles = isinstance(metric, TokenLoss) and not metric.of_samples and has_loss_in_tiles(model)
    with torch.no_grad():
        for start in range(0, count, micro_batch * world_size):
            indices = range(start + rank, start + micro_batch * world_size, world_size)
            batch = collate([dataset[i if i < count else 0] for i in indices])
            batch = {name: value.to(device) for name, value in batch.items()}
            batch["labels"][[i >= count for i in indices]] = IGNORED
            batch = part_of(batch, layout)
            labels, shifted = batch.pop("labels"), batch.pop("shift_labels", None)
            if in_tiles:
                sums = summed_in_tiles(model, batch, labels, shifted)
                if sums is not None:
                    total += sums if layout.reads_first or shifted is not None else 0
                    on_batch()
                    continue
            logits = whole_logits(model(**batch).logits, layout, model)
            if shifted is not None and metric.of_samples:
                logits, labels, batch = whole_samples((logits, labels, batch))
            elif shifted is not None:  # a metric shifts labels itself
                labels = torch.nn.functional.pad(shifted, (1, 0), value=IGNORED)
                logits = torch.nn.functional.pad(logits, (0, 0, 0, 1))
            # of equal results count one
            if layout.reads_first or (shifted is not None and not metric.of_samples):
                total += metric.sums(logits, labels, batch)
            on_batch()
    dist.all_reduce(total)
    return metric.values(total)
