"""What a rank's parameters are parts of: whole layers, and all experts of a mixture.

A shard has the parameters of this rank that make one parameter of the model, and two functions: of
the ranks' parts the whole, and of the whole this rank's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from deepspeed.module_inject import layers as tensor_layers
from deepspeed.module_inject.layers import TensorParallel_Layer
from deepspeed.utils import groups

if TYPE_CHECKING:
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from deepspeed.module_inject.auto_ep_presets.base import MoEModelPreset

_Parts = Sequence[torch.Tensor]
# layers that add up what their ranks found; older releases have but the first
_ADD_UP = tuple(
    getattr(tensor_layers, name)
    for name in ("LinearAllreduce", "SubParamLinearAllreduce")
    if hasattr(tensor_layers, name)
)


@dataclass(frozen=True, slots=True)
class Shard:
    """The parameters of this rank that make one of the model."""

    parameters: tuple[Any, ...]
    whole: Callable[[_Parts], torch.Tensor]
    parts: Callable[[torch.Tensor], _Parts]


def shards_of(module: torch.nn.Module) -> dict[str, Shard]:
    """Return the trained parameters of a model, by the names that they had before sharing."""
    layers = _layers(module)
    renamed: dict[str, str] = {}
    found: dict[str, Shard] = {}
    for path, mixture in _mixtures(module).items():
        from deepspeed.module_inject.auto_ep_presets.registry import get_preset

        preset = get_preset(mixture.model_family)
        renamed[f"{path}.router.gate."] = f"{path}.{preset.router_pattern}."
        renamed[f"{path}.shared_experts."] = f"{path}.{preset.shared_experts_pattern}."
        renamed[f"{path}.shared_experts_gate."] = f"{path}.{preset.shared_experts_gate_pattern}."
        found |= _experts(f"{path}.{preset.experts_pattern}", mixture, preset)
    done = {id(p) for shard in found.values() for p in shard.parameters}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or id(parameter) in done:
            continue
        start = next((s for s in renamed if name.startswith(s)), "")
        whole_name = renamed[start] + name.removeprefix(start) if start else name
        layer = layers.get(name)
        found[whole_name] = (
            Shard((parameter,), _same, _alone)
            if layer is None
            else Shard((parameter,), partial(_gathered, layer), partial(_cut, layer))
        )
    return found


def parts_of(module: torch.nn.Module) -> dict[str, int]:
    """Return which part of a parameter this rank has, by the rank's own names of parameters.

    Those that it has whole are left out.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, int] = {}
    for path, layer in _layers(module).items():
        name = names.get(id(getattr(layer, path.rpartition(".")[2])))
        if name is not None and layer.mp_group is not None:
            found[name] = layer.tp_index
    for mixture in _mixtures(module).values():
        own = mixture.experts
        for weight in (own.w1, own.w2, own.w3):
            found[names[id(weight)]] = mixture.ep_rank
    return found


def _mixtures(module: torch.nn.Module) -> dict[str, AutoEPMoELayer]:
    """The mixtures whose experts ranks share; releases before 0.19.2 know none."""
    try:
        from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    except ImportError:
        return {}
    return {path: m for path, m in module.named_modules() if isinstance(m, AutoEPMoELayer)}


def _same(parts: _Parts) -> torch.Tensor:
    return parts[0]


def _alone(whole: torch.Tensor) -> _Parts:
    return (whole,)


def _layers(module: torch.nn.Module) -> dict[str, TensorParallel_Layer]:
    """The layers of the parameters that ranks have a part each of.

    A layer that adds up what its ranks found has its bias whole on each of them.
    """
    found = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, TensorParallel_Layer):
            continue
        adds_up = isinstance(layer, _ADD_UP)
        for name in ("weight",) if adds_up else ("weight", "bias"):
            if getattr(layer, name, None) is not None:
                found[f"{path}.{name}" if path else name] = layer
    return found


def _gathered(layer: TensorParallel_Layer, parts: _Parts) -> torch.Tensor:
    stand_in = torch.nn.Parameter(parts[0].clone(), requires_grad=False)
    layer.gather_params([stand_in])
    return stand_in.data


def _cut(layer: TensorParallel_Layer, whole: torch.Tensor) -> _Parts:
    stand_in = torch.nn.Parameter(whole.clone(), requires_grad=False)
    layer._tp_partition([stand_in])
    return (stand_in.data.contiguous(),)


def _experts(path: str, mixture: AutoEPMoELayer, preset: MoEModelPreset) -> dict[str, Shard]:
    """All experts' matrices: transformers has gate and up in one (E, 2 × F, H), DeepSpeed apart."""
    own = mixture.experts
    group = groups._get_expert_parallel_group(mixture.ep_group_name)
    first = mixture.ep_rank * mixture.num_local_experts
    mine = slice(first, first + mixture.num_local_experts)

    def every(parts: _Parts) -> torch.Tensor:
        joined = torch.cat(list(parts), dim=1).contiguous()
        found = [torch.empty_like(joined) for _ in range(mixture.ep_size)]
        dist.all_gather(found, joined, group=group)
        return torch.cat(found)

    return {
        f"{path}.{preset.expert_w1}": Shard(
            (own.w1, own.w3), every, lambda whole: whole[mine].chunk(2, dim=1)
        ),
        f"{path}.{preset.expert_w2}": Shard((own.w2,), every, lambda whole: (whole[mine],)),
    }
