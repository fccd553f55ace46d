"""Replicas of parameters that must agree over ranks: checksums of the bits, a slice at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from dslm.worker.layout.shards import parts_of

SLICES = 8  # parts of the parameters: a check that is due reads one of them
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEAST, _MOST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


class Replicas:
    """The parameters of an engine that ranks hold alike: all of them, or those of one part.

    Under ZeRO-3 there are none. Where ranks share layers or experts, those that have the same part
    must agree.
    """

    def __init__(self, engine: Any) -> None:
        """Look at an engine that is ready; all ranks must."""
        parts = parts_of(engine.module)
        self._held = [
            (name, parameter, parts.get(name, 0))
            for name, parameter in engine.module.named_parameters()
            if not hasattr(parameter, "ds_id")
            and (name in parts or getattr(parameter, "allreduce", True))
        ]

    def differing(self, part: int | None) -> str | None:
        """Compare replicas over the ranks; all ranks call.

        Args:
            part: the slice to look at; None: everything.

        Returns:
            Which parameter differs on which rank; None when all agree.
        """
        found = [
            each
            for number, each in enumerate(self._held)
            if part is None or number % SLICES == part % SLICES
        ]
        ranks = dist.get_world_size()
        if not found or ranks == 1:
            return None
        sums = checksums([tensor for _, tensor, _ in found])
        mine = torch.stack([torch.tensor([own for *_, own in found], device=sums.device), sums])
        all_of_them = [torch.empty_like(mine) for _ in range(ranks)]
        dist.all_gather(all_of_them, mine)
        table = torch.stack(all_of_them).cpu()  # (ranks, part and sum, tensors)
        wrong = _wrong(table[:, 0], table[:, 1])
        if not wrong:
            return None
        named = [f"`{found[at][0]}` on {_odd_ones(table[:, :, at].tolist())}" for at in wrong[:3]]
        more = f" and {len(wrong) - 3} more parameters" if len(wrong) > 3 else ""
        return ", ".join(named) + more


def checksums(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return a number for the bits of each tensor, shape (tensors,): another bit, another number.

    The words of a tensor are summed, so it is one reading of memory.
    """
    sums = [
        tensor.detach().contiguous().view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors
    ]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def _wrong(parts: torch.Tensor, sums: torch.Tensor) -> list[int]:
    """Which tensors differ among ranks that have the same part of them; both (ranks, tensors)."""
    wrong = torch.zeros(parts.shape[1], dtype=torch.bool)
    for part in parts.unique().tolist():
        same = parts == part
        most = sums.masked_fill(~same, _LEAST).amax(0)
        least = sums.masked_fill(~same, _MOST).amin(0)
        wrong |= same.any(0) & (most != least)
    return wrong.nonzero().flatten().tolist()


def _odd_ones(held: list[list[int]]) -> str:
    """Name the ranks that differ from most others with the same part, of (part, sum) by rank."""
    odd: list[int] = []
    for part in sorted({own for own, _ in held}):
        mine = {rank: value for rank, (own, value) in enumerate(held) if own == part}
        (usual, count), *_ = Counter(mine.values()).most_common(1)
        if 2 * count <= len(mine) and len(set(mine.values())) > 1:
            odd += list(mine)
        else:
            odd += [rank for rank, value in mine.items() if value != usual]
    return f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, sorted(odd)))}"
