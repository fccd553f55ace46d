"""What is switched, one thing at a time, to find the cause of a difference."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dslm.recipe.schema import Recipe

Layout = tuple[Recipe, dict[str, Any]]  # with its DeepSpeed config
_ZERO = "zero_optimization"
_PER_RANK = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
# not layers and experts: a process that has DeepSpeed's groups for them keeps them for good
_SHARED = (("sequence", "sequences", "sequence_parallel_size"),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """One thing, how it is switched, and the setting of a recipe that does the same."""

    name: str
    setting: str
    change: Callable[[Layout], Layout]


def _model(**values: Any) -> Callable[[Layout], Layout]:
    def change(layout: Layout) -> Layout:
        recipe, config = layout
        return recipe.model_copy(update={"model": recipe.model.model_copy(update=values)}), config

    return change


def _zero(**values: Any) -> Callable[[Layout], Layout]:
    def change(layout: Layout) -> Layout:
        recipe, config = layout
        section = config.get(_ZERO, {})
        known = {k: v for k, v in values.items() if section.get(k) != v}
        return recipe, {**config, _ZERO: {**section, **known}}

    return change


def _buckets(layout: Layout) -> Layout:
    recipe, config = layout
    section = dict(config.get(_ZERO, {}))
    for key in [key for key in section if key.endswith("bucket_size")]:
        section[key] = 500_000_000
    return recipe, {**config, _ZERO: section}


def _accumulation(layout: Layout) -> Layout:
    recipe, config = layout
    whole = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    batch = recipe.batch.model_copy(update={"micro_size": whole})
    return recipe.model_copy(update={"batch": batch}), {
        **config, "train_micro_batch_size_per_gpu": whole, "gradient_accumulation_steps": 1,
    }  # fmt: skip


def _packing(layout: Layout) -> Layout:
    recipe, config = layout
    data = recipe.data.model_copy(update={"packing": False})
    return recipe.model_copy(update={"data": data}), config


def _alone(kind: str, section: str) -> Callable[[Layout], Layout]:
    """Ranks that share nothing of a kind: each of them reads samples of its own."""

    def change(layout: Layout) -> Layout:
        recipe, config = layout
        size = getattr(recipe.parallel, kind)
        micro, accumulated = (config[key] for key in _PER_RANK)
        if not isinstance(size, int) or size == 1 or section not in config:
            return layout
        if micro * accumulated % size:
            return layout
        shared = math.gcd(accumulated, size)
        accumulated, micro = accumulated // shared, micro * shared // size
        kept = {k: v for k, v in config.items() if k != section}
        parallel = recipe.parallel.model_copy(update={kind: 1})
        return recipe.model_copy(update={"parallel": parallel}), {
            **kept, **dict(zip(_PER_RANK, (micro, accumulated), strict=True)),
        }  # fmt: skip

    return change


def _without_zero(layout: Layout) -> Layout:
    return _at_stage(layout, 0)


def _stage(layout: Layout) -> Layout:
    return _at_stage(layout, {3: 1, 2: 1}.get(layout[1].get(_ZERO, {}).get("stage"), 0))


def _at_stage(layout: Layout, stage: int) -> Layout:
    recipe, config = layout
    if config.get(_ZERO, {}).get("stage", 0) == stage:
        return layout
    parallel = recipe.parallel.model_copy(update={"zero_stage": stage, "offload": "none"})
    kept = {k: v for k, v in config.get(_ZERO, {}).items()
            if not k.startswith(("offload", "stage3", "zero_"))}  # fmt: skip
    return recipe.model_copy(update={"parallel": parallel}), {
        **config, _ZERO: {**kept, "stage": stage},
    }  # fmt: skip


def _precision(layout: Layout) -> Layout:
    recipe, config = layout
    kept = {k: v for k, v in config.items() if k not in ("bf16", "bfloat16", "fp16", "data_types")}
    return recipe.model_copy(update={"precision": "fp32"}), kept


def _own_section(layout: Layout) -> Layout:
    """Without what the recipe's own `deepspeed` section says, where DeepSpeed has a default."""
    recipe, config = layout
    return recipe.model_copy(update={"deepspeed": {}}), _without(config, recipe.deepspeed)


def _without(values: Any, given: Any) -> Any:
    """A mapping without the leaves that another one has."""
    if not isinstance(given, dict) or not isinstance(values, dict):
        return values
    kept = {k: v for k, v in values.items() if k not in given or isinstance(given[k], dict)}
    return {k: _without(v, given.get(k)) for k, v in kept.items()}


SWITCHES = (
    Switch(name="the `deepspeed` section", setting="deepspeed", change=_own_section),
    Switch(
        name="overlapped communication",
        setting="deepspeed.zero_optimization.overlap_comm=false",
        change=_zero(overlap_comm=False),
    ),
    Switch(
        name="buckets",
        setting="deepspeed.zero_optimization.reduce_bucket_size=500000000",
        change=_buckets,
    ),
    Switch(
        name="gradient accumulation", setting="batch.micro_size", change=_accumulation,
    ),
    Switch(
        name="recomputation",
        setting="model.activation_checkpointing=false",
        change=_model(activation_checkpointing=False),
    ),
    Switch(name="attention", setting="model.attention=eager", change=_model(attention="eager")),
    *(
        Switch(name=f"shared {what}", setting=f"parallel.{kind}=1", change=_alone(kind, section))
        for kind, what, section in _SHARED
    ),
    Switch(name="packing", setting="data.packing=false", change=_packing),
    Switch(name="fused loss", setting="model.liger=false", change=_model(liger=False)),
    Switch(name="compile", setting="model.compile=false", change=_model(compile=False)),
    Switch(name="ZeRO stage", setting="parallel.zero_stage", change=_stage),
    Switch(name="ZeRO", setting="parallel.zero_stage=0", change=_without_zero),
    Switch(name="precision", setting="precision=fp32", change=_precision),
)  # fmt: skip


def switched(layout: Layout) -> Iterator[tuple[Switch, Layout]]:
    """Each switch that changes something, with the layout that it makes."""
    for switch in SWITCHES:
        recipe, config = switch.change((layout[0], copy.deepcopy(layout[1])))
        if (recipe, config) != layout:
            yield switch, (recipe, config)
