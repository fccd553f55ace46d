"""Progress of a transformers Trainer, told to the guard and recorded by rank 0; no DeepSpeed here.

What callbacks of dslm's own training and of a user's script have in common.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dslm.run.events import Event
from dslm.worker.ranks import Rank


class Progress(TrainerCallback):
    """A callback that tells the guard of each micro batch, so that a long step is no stall."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def write(self, event: Event) -> None:
        """Append an event, on rank 0."""
        if self._rank.rank == 0:
            self._rank.record(event)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._rank.guard.note()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._rank.guard.note()


def finite(value: object) -> float | None:
    """Return a number for JSON, which knows no NaN; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def sizes(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters there are and are trained, also where ZeRO-3 partitions them."""
    counted = [
        (int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()
    ]
    return sum(size for size, _ in counted), sum(size for size, trained in counted if trained)
