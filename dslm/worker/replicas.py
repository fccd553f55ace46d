"""Replicas of parameters that must agree over ranks: checksums of the bits, a slice at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

SLICES = 8  # parts of the parameters: a check that is due reads one of them
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def replicated(engine: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters that every rank of a data-parallel group holds as a whole.

    Under ZeRO-3 there are none; an expert's are its own group's.
    """
    return [
        (name, parameter)
        for name, parameter in engine.module.named_parameters()
        if not hasattr(parameter, "ds_id") and getattr(parameter, "allreduce", True)
    ]


def checksums(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return a number for the bits of each tensor, shape (tensors,): another bit, another number.

    The words of a tensor are summed, so it is one reading of memory.
    """
    sums = [
        tensor.detach().contiguous().view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors
    ]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def differing(engine: Any, group: Any, part: int | None) -> str | None:
    """Compare replicas over the ranks; all ranks call.

    Args:
        engine: DeepSpeed's.
        group: the ranks that must agree; None: all.
        part: the slice to look at; None: everything.

    Returns:
        Which parameter differs on which rank; None when all agree.
    """
    found = [
        pair
        for number, pair in enumerate(replicated(engine))
        if part is None or number % SLICES == part % SLICES
    ]
    mine = checksums([tensor for _, tensor in found])
    if not len(mine) or dist.get_world_size(group) == 1:
        return None
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, mine, group=group)
    table = torch.stack(all_of_them).cpu()  # (ranks, tensors)
    wrong = (table != table[0]).any(0).nonzero().flatten().tolist()
    if not wrong:
        return None
    named = [f"`{found[at][0]}` on {_odd_ones(table[:, at].tolist())}" for at in wrong[:3]]
    more = f" and {len(wrong) - 3} more parameters" if len(wrong) > 3 else ""
    return ", ".join(named) + more


def _odd_ones(values: list[int]) -> str:
    """Name the ranks that differ from most others."""
    (usual, count), *_ = Counter(values).most_common(1)
    odd = [str(rank) for rank, value in enumerate(values) if value != usual]
    if 2 * count <= len(values):
        return f"ranks {', '.join(str(rank) for rank in range(len(values)))}"
    return f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(odd)}"
