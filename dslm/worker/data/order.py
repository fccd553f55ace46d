"""Which rank reads which sample when: a pure function of seed, epoch and optimizer step.

The samples of step s are the same for every world size; only who reads which of them differs. So
the loss curve doesn't depend on the number of ranks, and a run goes on at any other number with
every sample seen exactly once an epoch. Knows indices, not samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of all samples in one epoch: a permutation of 0 … count - 1."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


_known_order = lru_cache(maxsize=1)(epoch_order)  # steps of one epoch ask for it again and again


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which of a step's samples a data-parallel rank reads.

    `sharding` says how they are shared out: `interleaved` in turn, `range` in contiguous pieces,
    `hash` by a hash of the sample's index (evened out, since each rank must get equally many).
    """

    rank: int = 0
    world_size: int = 1
    sharding: str = "interleaved"

    def of(self, samples: np.ndarray, count: int) -> np.ndarray:
        """Return this rank's part of the samples of a step; `count` are in the data set."""
        if self.sharding == "interleaved":
            return samples[self.rank :: self.world_size]
        if self.sharding == "hash":
            # Knuth's multiplicative hash (TAOCP 6.4) sorts; equal shares follow
            hashes = samples % count * 2654435761 % 2**32
            samples = samples[np.argsort(hashes, kind="stable")]
        share = len(samples) // self.world_size
        return samples[self.rank * share : (self.rank + 1) * share]


class GlobalBatchSampler:
    """Micro batches for one data-parallel rank, from any step of a run to its end.

    A batch is a list of places (see `samples_of_step`). The epochs follow each other without a
    gap, so a step may hold the last samples of one epoch and the first of the next.
    """

    def __init__(
        self,
        *,
        count: int,
        seed: int,
        steps: int,
        micro_batch: int,
        accumulation: int,
        share: Share = Share(),
        start_step: int = 0,
        skipped: Collection[int] = (),
    ) -> None:
        self.count = count
        self.seed = seed
        self.steps = steps
        self.micro_batch = micro_batch
        self.accumulation = accumulation
        self.share = share
        self.start_step = start_step
        self._skipped = sorted(skipped)

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, over all ranks."""
        return self.micro_batch * self.accumulation * self.share.world_size

    @property
    def samples_per_batch(self) -> int:
        """Samples that a global batch takes of the data."""
        return self.global_batch

    def __len__(self) -> int:
        """Micro batches of one rank in the whole run, wherever it starts."""
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            mine = self.samples_of_rank(step)
            for start in range(0, len(mine), self.micro_batch):
                yield [int(i) for i in mine[start : start + self.micro_batch]]

    def batch_of(self, step: int) -> int:
        """Return which global batch an optimizer step (from 0) is of: skipped ones are left out."""
        batch = step
        for skipped in self._skipped:
            batch += skipped <= batch
        return batch

    def samples_of_step(self, step: int) -> np.ndarray:
        """Places of all samples of an optimizer step (from 0): the global batch, in order.

        A place is epoch × count + index, so that a sample seen again can be told from the first
        time (its masks are drawn anew).
        """
        first = self.batch_of(step) * self.samples_per_batch
        parts = []
        wanted = self.samples_per_batch
        while wanted:
            epoch, offset = divmod(first, self.count)
            order = _known_order(self.count, self.seed, epoch)
            part = order[offset : offset + wanted]
            parts.append(part + epoch * self.count)
            wanted -= len(part)
            first += len(part)
        return np.concatenate(parts)

    def samples_of_rank(self, step: int) -> np.ndarray:
        """This rank's share of an optimizer step."""
        return self.share.of(self.samples_of_step(step), self.count)
