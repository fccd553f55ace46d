"""The parameters in a ZeRO checkpoint of any stage, each read from disk only when it is wanted.

Files are memory-mapped, and only tensors and plain values are read of them
(`dslm.worker.tensors_only`). Source of the layout: deepspeed/utils/zero_to_fp32.py, which itself
loads everything at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dslm.errors import InputError, Where
from dslm.run.checkpoints import state_folder
from dslm.worker.tensors_only import tensors_only

_MODEL = "*mp_rank_00_model_states.pt"
_OPTIMIZER = "*zero_pp_rank_*_mp_rank_00_optim_states.pt"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor on disk: its shape and type, and the flat pieces that it is made of, in order."""

    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[torch.Tensor, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    def read(self) -> torch.Tensor:
        """Read it; what the last rank's piece holds too much is padding."""
        if len(self.pieces) == 1 and self.pieces[0].shape == self.shape:
            return self.pieces[0]
        return torch.cat([piece.flatten() for piece in self.pieces])[: self.numel].view(self.shape)


def stored_tensors(checkpoint: Path, zero_stage: int) -> dict[str, StoredTensor]:
    """Return all tensors of the model in a checkpoint, by name.

    At stages 0 to 2 they are the weights that the model computed with; at stage 3 the optimizer's
    full-precision ones, since only those are complete there.

    Args:
        checkpoint: a folder `step-N`.
        zero_stage: what it was written under.

    Raises:
        InputError: the folder holds no checkpoint of DeepSpeed's, or a tensor-parallel one.
    """
    try:
        return _stored_tensors(checkpoint, zero_stage)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as failure:
        raise InputError(
            "is not a checkpoint as DeepSpeed writes it: "
            f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}",
            where=Where(file=checkpoint),
        ) from failure


def _stored_tensors(checkpoint: Path, zero_stage: int) -> dict[str, StoredTensor]:
    folder = state_folder(checkpoint)
    if list(folder.glob("*mp_rank_01_*")):
        raise InputError(
            "holds a tensor-parallel model, which can't be put together here",
            where=Where(file=checkpoint),
            hint="the run itself exports its model when it ends",
        )
    states = [_load(file) for file in _in_rank_order(folder, _MODEL)]
    if not states:
        raise InputError("holds no model states", where=Where(file=folder))
    if zero_stage < 3:
        return _without_twins(states[0]["module"])
    groups = [_load(file) for file in _in_rank_order(folder, _OPTIMIZER)]
    flat = [state["optimizer_state_dict"]["fp32_flat_groups"] for state in groups]
    found = dict(_trained(states[0]["param_shapes"], flat))
    for name, shape in (states[0]["frozen_param_shapes"] or {}).items():
        fragments = tuple(state["frozen_param_fragments"][name] for state in states)
        found[name] = StoredTensor(torch.Size(shape), fragments[0].dtype, fragments)
    buffers = {name: states[0]["module"][name] for name in states[0]["buffer_names"]}
    return {**found, **_without_twins(buffers)}


def _trained(
    shapes: list[Mapping[str, Any]], flat: list[list[torch.Tensor]]
) -> Iterator[tuple[str, StoredTensor]]:
    """Each parameter is split evenly over the ranks, one after the other in their flat groups."""
    group, offset = 0, 0
    for name, size in ((name, size) for part in shapes for name, size in part.items()):
        shape = torch.Size(size)
        share = -(-shape.numel() // len(flat))
        pieces: list[list[torch.Tensor]] = [[] for _ in flat]
        while share:
            taken = min(share, flat[0][group].numel() - offset)
            for rank, groups in enumerate(flat):
                pieces[rank].append(groups[group].narrow(0, offset, taken))
            share, offset = share - taken, offset + taken
            if offset == flat[0][group].numel():
                group, offset = group + 1, 0
        yield (
            name,
            StoredTensor(
                shape, flat[0][0].dtype, tuple(piece for rank in pieces for piece in rank)
            ),
        )


def _without_twins(module: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Tensors of a state dict; of those that share their memory (tied weights) only the first."""
    found: dict[str, StoredTensor] = {}
    seen = set()
    for name, tensor in module.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        found[name] = StoredTensor(tensor.shape, tensor.dtype, (tensor,))
    return found


def _in_rank_order(folder: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> int:
        _, marker, rest = path.name.partition("zero_pp_rank_")
        return int(rest.partition("_")[0]) if marker else 0

    return sorted(folder.glob(pattern), key=rank)


def _load(file: Path) -> dict[str, Any]:
    try:
        with tensors_only():
            loaded = torch.load(file, mmap=True, weights_only=True, map_location="cpu")
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as failure:
        raise InputError(
            f"is not a file of tensors: {str(failure).splitlines()[0]}",
            where=Where(file=file),
            hint="nothing else is read of a checkpoint, since that could run code",
        ) from failure
    if not isinstance(loaded, dict):
        raise InputError("holds no DeepSpeed state", where=Where(file=file))
    return loaded
