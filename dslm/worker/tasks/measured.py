"""Evaluation by TRL's own losses: means over all samples, whatever the ranks and batches are.

TRL averages over batches, of which the last one is filled up with samples that it has seen. Here
each rank measures its part of a batch alone, and every mean counts as often as what it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from dslm.worker.layout.ranks import Layout
from dslm.worker.tasks.base import Collate, Measure

Batch: TypeAlias = dict[str, torch.Tensor]
Batches: TypeAlias = Iterator[tuple[Batch, bool]]  # false: none of its samples counts
Counts: TypeAlias = Mapping[str, Callable[[Batch], int]]  # of how many samples a mean is


def pairs_in(batch: Batch) -> int:
    """Return how many pairs a batch holds: chosen texts first, then the rejected ones."""
    return len(batch["input_ids"]) // 2


class MeasuredAlone:
    """What an evaluation asks of a trainer of TRL's; comes before it in the list of bases."""

    model_wrapped: Any
    _metrics: Any

    def begin_evaluation(self, batches: Callable[[], Batches]) -> None:
        """Look at all batches, where a loss needs something of all of them; all ranks call."""

    def measured(self, batch: Batch) -> dict[str, float]:
        """Return the loss and TRL's metrics of a batch."""
        loss = self.compute_loss(self.model_wrapped, batch)  # type: ignore[attr-defined]
        found = {name: values[-1] for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        return {**found, "loss": float(loss)}


def means_of(counts: Counts) -> Measure:
    """Return what evaluates with a trainer: means over all samples of what is named."""
    return partial(_means, counts)


def _means(
    counts: Counts,
    trainer: Any,
    samples: Any,
    collate: Collate,
    layout: Layout,
    *,
    micro_batch: int,
    on_batch: Callable[[], None],
) -> dict[str, float]:
    rank, ranks, count = layout.data_rank, layout.data_size, len(samples)

    def batches() -> Batches:
        for start in range(0, count, micro_batch * ranks):
            mine = range(start + rank, min(count, start + micro_batch * ranks), ranks)
            batch = collate([samples[i] for i in mine or (0,)])
            yield trainer._prepare_inputs(batch), bool(mine)
            on_batch()

    sums = torch.zeros(2, len(counts), dtype=torch.float64, device=trainer.args.device)
    with torch.no_grad():
        trainer.begin_evaluation(batches)
        with _alone(trainer):
            for batch, counted in batches():
                found = trainer.measured(batch)
                for column, (name, size_of) in enumerate(counts.items()):
                    if counted and name in found:
                        size = size_of(batch)
                        sums[:, column] += sums.new_tensor([found[name] * size, size])
    dist.all_reduce(sums)
    totals, sizes = sums.tolist()
    return {
        name: total / size for name, total, size in zip(counts, totals, sizes, strict=True) if size
    }


class _Alone:
    """An accelerator that gathers from no other rank."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's."""
        return tensor

    gather_for_metrics = gather


@contextmanager
def _alone(trainer: Any) -> Iterator[None]:
    whole = trainer.accelerator
    trainer.accelerator = _Alone(whole)
    try:
        yield
    finally:
        trainer.accelerator = whole
