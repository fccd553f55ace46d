"""The reference's log-probabilities as columns: of samples, and of batches on their way to a loss.

In a batch they travel as bits: Trainers of half-precision engines round floats, and of a sum over
an answer that would leave a digit or two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dslm.recipe.preferences import reference_of
from dslm.recipe.schema import Recipe

_SAMPLE = "reference"  # in a sample: its row of the table
# what TRL's trainers call the two numbers of a sample
_NAMES = {"dpo": ("ref_chosen_logps", "ref_rejected_logps"), "kto": ("ref_logps", "ref_KL_logps")}


class WithReference(Dataset[dict[str, Any]]):
    """Samples, each with its row of the table."""

    def __init__(self, samples: Any, table: np.ndarray) -> None:
        self._samples = samples
        self._table = table

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self._samples[place], _SAMPLE: self._table[place % len(self._table)]}


def precomputed(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments with which TRL's trainers take the table's numbers."""
    return {"precompute_ref_log_probs": reference_of(recipe) == "precomputed"}


def packed(samples: list[dict[str, Any]], task: str) -> dict[str, torch.Tensor]:
    """Return the rows of some samples as columns of a batch; nothing where they have none."""
    if _SAMPLE not in samples[0]:
        return {}
    rows = torch.from_numpy(np.stack([sample[_SAMPLE] for sample in samples]))
    return {name: as_bits(rows[:, n]) for n, name in enumerate(_NAMES[task])}


def as_bits(numbers: torch.Tensor) -> torch.Tensor:
    """Return floats as whole numbers of the same bits."""
    return numbers.to(torch.float32).contiguous().view(torch.int32)


def unpacked(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch whose bits are floats again."""
    return {
        name: value.view(torch.float32)
        if isinstance(value, torch.Tensor) and value.dtype == torch.int32
        else value
        for name, value in batch.items()
    }
