"""Each trained parameter and each of its moments whole, out of any layout and into any.

All ranks call, in the same order. Below a parameter lies its full-precision copy and what the
optimizer keeps of it: at stage 0 in a plain torch optimizer, at stages 1 and 2 in fragments of flat
groups, at stage 3 in a partition of its own; where ranks share layers or experts, all that of a
shard. Names are those that the model had before it was shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
)

from dslm.worker.layout.shards import shards_of

WEIGHT = "weight"  # the parameter itself; the other keys are those of the optimizer's state
_STEP = "step"
# where DeepSpeed's optimizers of stage 3, of stages 1 and 2, and of bf16 have their flat groups
_FLAT = (
    "fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition",
)  # fmt: skip
_LINKED = "_hp_optimizer_states_linked"


class WholeState:
    """The state of an engine, parameter by parameter."""

    def __init__(self, engine: Any) -> None:
        optimizer = engine.optimizer
        self._optimizer = optimizer
        self._base = getattr(optimizer, "optimizer", optimizer)  # torch's, below DeepSpeed's
        self._shards = shards_of(engine.module)
        trained = [p for p in engine.module.parameters() if p.requires_grad]
        self._masters = masters(optimizer, trained)
        flat: Sequence[torch.Tensor] | None = next(
            (getattr(optimizer, name) for name in _FLAT if hasattr(optimizer, name)), None
        )
        own = dict.fromkeys(flat for flat, _ in self._masters.values())
        self._flat = list(own if flat is None else flat)
        self._link()

    @property
    def names(self) -> list[str]:
        """The trained parameters, in an order that is the same on every rank."""
        return list(self._shards)

    @property
    def keys(self) -> list[str]:
        """What there is of each parameter: the weight, and the moments that the optimizer has."""
        state: dict[str, Any] = next((s for s in self._base.state.values() if s), {})
        return [WEIGHT, *(key for key, value in state.items() if _is_moment(value))]

    @property
    def step(self) -> int:
        """How many updates the optimizer has made, as it counts them."""
        found = [state[_STEP] for state in self._base.state.values() if _STEP in state]
        return int(found[0]) if found else 0

    def begin(self, keys: Sequence[str], step: int) -> None:
        """Let the optimizer have these moments, still zero, and have made so many updates."""
        counts_tensors = type(self._base).__module__.startswith("torch.optim")
        for flat in self._flat:
            state = self._base.state[flat]
            for key in keys:
                if key != WEIGHT and key not in state:
                    state[key] = torch.zeros_like(flat, memory_format=torch.preserve_format)
            state[_STEP] = torch.tensor(float(step)) if counts_tensors else step
        for group in self._base.param_groups:
            if not counts_tensors:  # DeepSpeed's own count for all their parameters together
                group[_STEP] = step
        self._link()

    def read(self, name: str, key: str) -> torch.Tensor:
        """A parameter or a moment, whole, in fp32."""
        shard = self._shards[name]
        return shard.whole([self._read(p, key).detach().float() for p in shard.parameters])

    def write(self, name: str, key: str, value: torch.Tensor) -> None:
        """Put a whole parameter or moment in its place."""
        shard = self._shards[name]
        device = shard.parameters[0].device
        parts = shard.parts(value.to(device, torch.float32))
        with torch.no_grad():
            for parameter, part in zip(shard.parameters, parts, strict=True):
                self._write(parameter, key, part)

    def _link(self) -> None:
        """Let the parameters of stages 1 and 2 know where in the flat groups their moments are."""
        if hasattr(self._optimizer, _LINKED):
            setattr(self._optimizer, _LINKED, False)
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _read(self, parameter: Any, key: str) -> torch.Tensor:
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
            found = (
                safe_get_full_fp32_param(parameter)
                if key == WEIGHT
                else safe_get_full_optimizer_state(parameter, key)
            )
            shape = parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape
            whole: torch.Tensor = found.view(shape)
            return whole
        return self._plain(parameter, key)

    def _plain(self, parameter: Any, key: str) -> torch.Tensor:
        """Stage 0: the full-precision copy of a parameter, or a moment of it."""
        flat, offset = self._masters[parameter]
        held = flat.data if key == WEIGHT else self._base.state[flat][key]
        return held.reshape(-1)[offset : offset + parameter.numel()].view(parameter.shape)

    def _write(self, parameter: Any, key: str, value: torch.Tensor) -> None:
        if hasattr(parameter, "ds_id"):
            _write_partition(parameter, key, value)
            return
        if hasattr(parameter, "_hp_mapping"):
            parameter.set_full_hp_param(value, None if key == WEIGHT else key)
        else:
            self._plain(parameter, key).copy_(value.view_as(parameter))
        if key == WEIGHT:
            parameter.data.copy_(value.view_as(parameter))


def masters(
    optimizer: Any, trained: Sequence[torch.Tensor]
) -> dict[torch.Tensor, tuple[torch.Tensor, int]]:
    """Stage 0: what holds each parameter in full precision, and where in it.

    Itself; or a copy, where it is of 16 bits; or part of a flat one (DeepSpeed's optimizers unfused
    and fused of runtime/fp16).
    """
    found = {parameter: (parameter, 0) for parameter in trained}
    copies = getattr(optimizer, "fp32_groups", None)
    flat = getattr(optimizer, "fp32_groups_flat", None)
    for number, group in enumerate(getattr(optimizer, "fp16_groups", ()) if copies or flat else ()):
        offset = 0
        for place, parameter in enumerate(group):
            found[parameter] = (
                (copies[number][place], 0) if copies else (flat[number], offset)  # type: ignore[index]
            )
            offset += parameter.numel()
    return found


def whole_model(engine: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model whose layers ranks share, whole; all ranks call, rank 0 keeps them."""
    whole, first = WholeState(engine), dist.get_rank() == 0
    kind = next(p.dtype for p in engine.module.parameters() if p.requires_grad)
    found = dict(buffers(engine.module)) if first else {}
    for name in whole.names:
        value = whole.read(name, WEIGHT)
        if first:
            found[name] = value.to(kind).cpu()
    return found


def buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a model keeps beside its parameters, such as the means of a batch normalisation."""
    kept = module.state_dict().keys()
    return ((name, value) for name, value in module.named_buffers() if name in kept)


def _write_partition(parameter: Any, key: str, value: torch.Tensor) -> None:
    """Stage 3: this rank's part of a flat parameter; the last rank's is padded."""
    part = (
        safe_get_local_fp32_param(parameter)
        if key == WEIGHT
        else safe_get_local_optimizer_state(parameter, key)
    )
    rank = dist.get_rank(group=parameter.ds_process_group)
    flat = value.flatten()
    mine = torch.zeros_like(part).flatten()
    start = min(rank * mine.numel(), flat.numel())
    there = flat[start : start + mine.numel()]
    mine[: there.numel()] = there
    part.data.copy_(mine.view_as(part))
    if key == WEIGHT:
        parameter.ds_tensor.data.copy_(mine[: parameter.ds_tensor.numel()])


def _is_moment(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() > 1
