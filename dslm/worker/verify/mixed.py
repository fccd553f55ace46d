"""Samples that a verification trains on: those of several documents first, where there are any.

Long documents fill most samples alone, and what lets one document see another wouldn't show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from dslm.worker.data.prepare import Prepared
from dslm.worker.data.store import Samples

_LOOKED_AT = 2000  # the last ones: pieces that fill a sample alone are put into it first
_FEWEST = 2  # which are then seen again


class Chosen(Dataset[dict[str, Any]]):
    """Some of the samples, in the place of all."""

    def __init__(self, samples: Samples, indices: list[int]) -> None:
        self._samples = samples
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> dict[str, Any]:
        found = self._samples[self._indices[place % len(self._indices)]]
        return {**found, "place": place}

    def as_dataset(self) -> Any:
        """Return what trainers ask for that never read it."""
        return self._samples.as_dataset()


def mixed(data: Prepared) -> Prepared:
    """Return the data with samples of several documents alone, where there are enough."""
    several = [
        index
        for index in range(max(0, len(data.train) - _LOOKED_AT), len(data.train))
        if len(data.train[index].get("lengths", ())) > 1
    ]
    if len(several) < _FEWEST:
        return data
    chosen: Any = Chosen(data.train, several)
    return replace(data, train=chosen)
