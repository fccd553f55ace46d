"""Where the documents of a micro batch begin and end: what attention needs instead of a mask.

From `position_ids`, which start anew with every document. Attention then costs the sum of the
documents' squares, where an L × L mask costs the square of the sum. Legend: B samples, L tokens in
each, N documents, D their lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, slots=True)
class Bucket:
    """Documents of about one length, padded to the longest: n documents of T tokens."""

    tokens: torch.Tensor  # (n, T): which token of the flat batch stands there
    real: torch.Tensor  # (n, T): False for padding


@dataclass(frozen=True)
class Documents:
    """The documents of a micro batch, in the order of its tokens."""

    starts: torch.Tensor  # (N,): first token, in the flat batch
    lengths: torch.Tensor  # (N,)
    shape: tuple[int, int]  # B, L

    @staticmethod
    def of(positions: torch.Tensor) -> Documents:
        """Find the documents of `position_ids` (B, L): one begins where they don't go on."""
        begins = torch.ones_like(positions, dtype=torch.bool)
        begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
        starts = begins.flatten().nonzero()[:, 0]
        ends = torch.cat([starts[1:], starts.new_tensor([positions.numel()])])
        return Documents(starts, ends - starts, (positions.shape[0], positions.shape[1]))

    @cached_property
    def whole(self) -> bool:
        """Whether every sample is one document."""
        return len(self.starts) == self.shape[0]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.lengths.max())

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """Lengths added up, from 0 to B × L: what kernels for sequences of any length take."""
        zero = self.starts.new_zeros(1)
        return torch.cat([zero, self.lengths.cumsum(0)]).to(torch.int32)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The documents by their length, rounded up to powers of two, so that few are padded."""
        powers = (self.lengths - 1).clamp(min=0).float().add(1).log2().ceil().long()
        found = []
        for power in powers.unique().tolist():
            chosen = (powers == power).nonzero()[:, 0]
            lengths = self.lengths[chosen]
            steps = torch.arange(int(lengths.max()), device=lengths.device)
            real = steps < lengths[:, None]
            tokens = self.starts[chosen, None] + steps.minimum(lengths[:, None] - 1)
            found.append(Bucket(tokens, real))
        return found

    @cached_property
    def order(self) -> torch.Tensor:
        """Where each token of the flat batch stands among the real tokens of all buckets."""
        placed = torch.cat([bucket.tokens[bucket.real] for bucket in self.buckets])
        return placed.argsort()
