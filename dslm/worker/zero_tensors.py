"""Parameters and moments in a ZeRO checkpoint of any stage, each read from disk when it is wanted.

Files are memory-mapped, and only tensors and plain values are read of them
(`dslm.worker.tensors_only`). Source of the layout: deepspeed/utils/zero_to_fp32.py, which itself
loads everything at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    with _refusing(checkpoint, "is not a checkpoint as DeepSpeed writes it"):
        return _stored_tensors(checkpoint, zero_stage)


@contextmanager
def _refusing(checkpoint: Path, what: str) -> Iterator[None]:
    """Say of whatever reading a checkpoint raises what the checkpoint is not."""
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as failure:
        raise InputError(
            f"{what}: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}",
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


@dataclass(frozen=True, slots=True)
class StoredState:
    """What a training goes on from: trained tensors and their moments, and what is counted."""

    tensors: Mapping[str, Mapping[str, StoredTensor]]  # by key (weight, exp_avg, …), then by name
    optimizer_step: int
    model: Mapping[str, Any]  # DeepSpeed's states of the first rank: scheduler, counters, buffers
    loss_scale: float | None


def stored_state(checkpoint: Path, zero_stage: int) -> StoredState:
    """Return the optimizer's full-precision parameters and their moments, whole.

    Args:
        checkpoint: a folder `step-N`.
        zero_stage: what it was written under.

    Raises:
        InputError: the folder holds no checkpoint, or one that can't be put together.
    """
    with _refusing(checkpoint, "is not a checkpoint whose optimizer state can be put together"):
        return _stored_state(checkpoint, zero_stage)


def _stored_state(checkpoint: Path, zero_stage: int) -> StoredState:
    folder = state_folder(checkpoint)
    model = _load(_in_rank_order(folder, _MODEL)[0])
    states = [_load(file)["optimizer_state_dict"] for file in _in_rank_order(folder, _OPTIMIZER)]
    if not states:
        tensors, step = _plain_state(model)
        return StoredState(tensors, step, model, None)
    if model.get("ds_config", {}).get("zero_optimization", {}).get("zenflow"):
        raise ValueError("ZenFlow keeps matrices the other way round")
    shapes = model["param_shapes"]
    if zero_stage == 3:
        base = [state["optimizer_state_dict"]["state"] for state in states]
        flat = {"weight": [state["fp32_flat_groups"] for state in states]}
        together = _trained
    else:
        base = [_base_of(state) for state in states]
        flat = {"weight": [_masters(state) for state in states]}
        together = _in_turn
    first = _ordered(base[0])
    for key in (key for key, value in first[0].items() if _is_moment(value)):
        flat[key] = [[group[key] for group in _ordered(state)] for state in base]
    step = next((int(group["step"]) for group in first if "step" in group), 0)
    scaler = states[0].get("loss_scaler")
    return StoredState(
        {key: dict(together(shapes, groups)) for key, groups in flat.items()},
        step or model.get("global_steps", 0),
        model,
        float(scaler.cur_scale) if scaler is not None else None,
    )


def _masters(state: Mapping[str, Any]) -> list[torch.Tensor]:
    """The full-precision parameters of a rank, as ZeRO and the bf16 optimizer name them."""
    found: list[torch.Tensor] = (
        state["single_partition_of_fp32_groups"]
        if "single_partition_of_fp32_groups" in state
        else state["fp32_flat_groups"]
    )
    return found


def _base_of(state: Mapping[str, Any]) -> Mapping[int, Any]:
    base = state["base_optimizer_state"]
    found: Mapping[int, Any] = base["state"] if "state" in base else dict(enumerate(base))
    return found


def _ordered(state: Mapping[int, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [state[number] for number in sorted(state)]


def _in_turn(
    shapes: list[Mapping[str, Any]], flat: list[list[torch.Tensor]]
) -> Iterator[tuple[str, StoredTensor]]:
    """At stages 1 and 2 a group's parameters follow each other; ranks cut it evenly."""
    for number, part in enumerate(shapes):
        ranks = [groups[number].reshape(-1) for groups in flat]
        offset = 0
        for name, size in part.items():
            shape = torch.Size(size)
            yield name, StoredTensor(shape, ranks[0].dtype, _cut(ranks, offset, shape.numel()))
            offset += shape.numel()


def _cut(ranks: list[torch.Tensor], start: int, count: int) -> tuple[torch.Tensor, ...]:
    """The pieces of a range of what the ranks hold one after the other."""
    pieces = []
    for held in ranks:
        if start < held.numel() and count:
            taken = min(count, held.numel() - start)
            pieces.append(held.narrow(0, start, taken))
            start, count = 0, count - taken
        else:
            start -= held.numel() if count else 0
    if count:
        raise ValueError("a parameter goes on beyond what the ranks hold")
    return tuple(pieces)


def _plain_state(
    model: Mapping[str, Any],
) -> tuple[dict[str, dict[str, StoredTensor]], int]:
    """Stage 0: the module's own tensors, and torch's optimizer, which numbers its parameters.

    Raises:
        ValueError: the numbers don't say which parameter is meant.
    """
    outer = model["optimizer"]
    optimizer = outer.get("optimizer_state_dict", outer)
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    kept = set(model.get("buffer_names") or ())
    named = {
        name: tensor
        for name, tensor in _without_twins(model["module"]).items()
        if name not in kept and name not in (model.get("frozen_param_shapes") or {})
    }
    states = [optimizer["state"][number] for number in numbers]
    moments = [{k: v for k, v in state.items() if _is_moment(v)} for state in states]
    shapes = [next(iter(each.values())).shape for each in moments]
    if len(optimizer["param_groups"]) > 1 or shapes != [t.shape for t in named.values()]:
        raise ValueError("its optimizer has parameters in an order of its own")
    found: dict[str, dict[str, StoredTensor]] = {"weight": named}
    if "fp32_groups" in outer:  # the model itself is of 16 bits
        copies = [copy for group in outer["fp32_groups"] for copy in group]
        found["weight"] = {
            name: StoredTensor(copy.shape, copy.dtype, (copy,))
            for name, copy in zip(named, copies, strict=True)
        }
    for name, each in zip(named, moments, strict=True):
        for key, value in each.items():
            found.setdefault(key, {})[name] = StoredTensor(value.shape, value.dtype, (value,))
    return found, next((int(s["step"]) for s in states if "step" in s), 0)


def _is_moment(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() > 1


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
