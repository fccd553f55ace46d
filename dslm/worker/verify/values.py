"""Parameters and gradients of an engine, whole and in fp32, by the names they had before sharing.

All ranks call, in the same order; rank 0 keeps what comes out.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from dslm.worker.layout.shards import shards_of
from dslm.worker.layout.whole import masters
from dslm.worker.verify.reference import Tensors


class Values:
    """What an engine holds of each parameter, at any stage and in any layout."""

    def __init__(self, engine: Any, *, shared: bool) -> None:
        """Look at an engine that is ready; `shared`: ranks have parts of parameters."""
        self._engine = engine
        self._shared = shared
        self._shards = shards_of(engine.module)
        trained = [p for p in engine.module.parameters() if p.requires_grad]
        self._masters = masters(engine.optimizer, trained)
        self.muon = frozenset(
            name
            for name, shard in self._shards.items()
            if any(_of_muon(engine, p) for p in shard.parameters)
        )
        # at these stages DeepSpeed's Muon puts its update in the gradient's place before the step
        stage = engine.zero_optimization_stage()
        self.unknown = self.muon if stage in (1, 2) else frozenset()
        # and the norm is that of updates at all of its stages
        self.norm_of_gradients = not (self.muon and stage)

    def parameters(self) -> Tensors:
        """All parameters, those that are trained from their full-precision copies."""
        found: Tensors = {}
        for name, shard in self._shards.items():
            _keep(found, name, shard.whole([self._weight(p) for p in shard.parameters]))
        for name, parameter in self._engine.module.named_parameters():
            if not parameter.requires_grad:
                _keep(found, name, _bits(parameter, _gathered(parameter)))
        return found

    def gradients(self) -> Tensors:
        """All gradients after they were reduced and before clipping, without the loss scale."""
        engine = self._engine
        found: Tensors = {}
        optimizer = engine.optimizer
        scale = (
            float(getattr(optimizer, "loss_scale", 1.0) or 1.0) if engine.fp16_enabled() else 1.0
        )
        for name, shard in self._shards.items():
            if name in self.unknown:
                continue
            parts = [self._gradient(parameter) for parameter in shard.parameters]
            if all(part is not None for part in parts):
                _keep(
                    found, name, shard.whole([part for part in parts if part is not None]) / scale
                )
        return found

    def _weight(self, parameter: Any) -> torch.Tensor:
        value = safe_get_full_fp32_param(parameter)
        if value is None and hasattr(parameter, "ds_id"):
            value = _gathered(parameter)
        if value is None:
            flat, offset = self._masters[parameter]
            value = flat.detach().reshape(-1)[offset : offset + parameter.numel()]
        return value.detach().float().view(_shape(parameter))

    def _gradient(self, parameter: Any) -> torch.Tensor | None:
        value = safe_get_full_grad(parameter)
        if value is not None:
            whole: torch.Tensor = value.detach().float().view(_shape(parameter))
            return whole
        # ranks that have the other parts wait for this one
        return torch.zeros_like(parameter, dtype=torch.float32) if self._shared else None


def _keep(found: Tensors, name: str, value: torch.Tensor) -> None:
    if dist.get_rank() == 0:
        found[name] = value.detach().float().cpu().clone()


def _bits(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """A frozen parameter as it is; of one in few bits its bytes in a row, which are no weights."""
    packed = getattr(parameter, "quant_state", None) is not None or not value.is_floating_point()
    return value.contiguous().view(torch.uint8).flatten() if packed else value


def _of_muon(engine: Any, parameter: Any) -> bool:
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return "Muon" in type(optimizer).__name__ and bool(getattr(parameter, "use_muon", False))


def _gathered(parameter: Any) -> torch.Tensor:
    if not hasattr(parameter, "ds_id"):
        value: torch.Tensor = parameter.data
        return value
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.data.clone()


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
