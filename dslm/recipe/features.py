"""Features of DeepSpeed that a key of a recipe switches on: where each of them goes, as a table.

A recipe in, the features that are on out. The planner chooses among the stages that all of them
take, the checks refuse the rest with the row's own words, docs/layouts.md shows the table. Which
values of a DeepSpeed config a feature is stands in dslm/zero/features.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dslm.recipe.schema import Recipe

ANY_STAGE = (0, 1, 2, 3)
TOP_COLUMNS = 0.1  # topk_ratio in runtime/zenflow/zenflow_config.py of DeepSpeed 0.19
ZEROPP = ("hpz", "quantized_weights", "quantized_gradients")  # keys of `parallel`


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One key, what it is, and where it goes."""

    key: str
    what: str
    on: Callable[[Recipe], bool]
    home: str = ""  # file of DeepSpeed that has it, where not every version that dslm takes does
    stages: tuple[int, ...] = ANY_STAGE
    offloads: tuple[str, ...] = ()  # one of which it needs; none: any, or no offload
    accelerator: bool = False  # its kernels need one
    cuda: bool = False  # … of NVIDIA's
    tasks: tuple[str, ...] = ()  # none: all
    torch: str = ""  # the oldest torch that has what it uses


@dataclass(frozen=True, slots=True)
class Apart:
    """Parts of a recipe that don't go together, whatever the plan."""

    key: str
    clashes: Callable[[Recipe], object]
    message: str
    hint: str


def is_second(recipe: Recipe) -> bool:
    """Return whether parameters have a second partition inside each host (hpZ), as asked for."""
    return recipe.parallel.zeropp or recipe.parallel.hpz is True


def quantizes_weights(recipe: Recipe) -> bool:
    """Return whether gathered parameters are sent in fewer bits."""
    return recipe.parallel.zeropp or recipe.parallel.quantized_weights


def quantizes_gradients(recipe: Recipe) -> bool:
    """Return whether reduced gradients are sent in fewer bits."""
    return recipe.parallel.zeropp or recipe.parallel.quantized_gradients


_GROUPS = 20
_LOSS = ("pretrain", "sequence")
_TILED = ("pretrain", "sft", "sequence", "mlm")  # in which that was tried
FEATURES = (
    Feature(
        key="parallel.hpz", what="the second partition of ZeRO++", on=is_second,
        stages=(3,), accelerator=True,
    ),
    Feature(
        key="parallel.quantized_weights", what="the quantized parameters of ZeRO++",
        on=quantizes_weights, stages=(3,),
        accelerator=True,
    ),
    Feature(
        key="parallel.quantized_gradients", what="the quantized gradients of ZeRO++",
        on=quantizes_gradients, stages=(3,),
        accelerator=True,
    ),
    Feature(
        key="parallel.offload_ratio", what="an optimizer offloaded in part (Twin-Flow)",
        on=lambda r: r.parallel.offload_ratio < 1, stages=(3,),
        offloads=("optimizer", "all"),
    ),
    Feature(
        key="parallel.super_offload", what="SuperOffload",
        on=lambda r: r.parallel.super_offload, home="runtime/superoffload/superoffload_stage3.py",
        stages=(3,), offloads=("optimizer", "all"), accelerator=True, cuda=True,
    ),
    Feature(
        key="parallel.zenflow", what="ZenFlow", on=lambda r: r.parallel.zenflow,
        home="runtime/zenflow/engine.py", stages=(1, 2), offloads=("optimizer",),
    ),
    Feature(
        key="parallel.overlap", what="communication beside computation",
        on=lambda r: r.parallel.overlap is True, stages=(1, 2, 3), accelerator=True,
    ),
    Feature(
        key="model.deepcompile", what="DeepCompile", on=lambda r: r.model.deepcompile,
        home="compile/init_z3.py", stages=(1, 2, 3), accelerator=True, cuda=True, torch="2.6",
    ),
    Feature(
        key="model.chunked_loss", what="the loss in chunks", on=lambda r: r.model.chunked_loss,
        home="runtime/chunked_cross_entropy.py", tasks=_LOSS,
    ),
    Feature(
        key="model.tiled_mlp", what="the computation of MLPs in tiles of tokens",
        on=lambda r: r.model.tiled_mlp is True, tasks=_TILED,
    ),
    Feature(
        key="model.tiled_loss", what="the computation of logits and loss in tiles of tokens",
        on=lambda r: r.model.tiled_loss is True, tasks=_LOSS,
    ),
    Feature(
        key="model.offload_activations", what="recomputation from the host's memory",
        on=lambda r: r.model.offload_activations is True, accelerator=True,
    ),
    Feature(
        key="autocast", what="torch's autocast", on=lambda r: r.autocast,
        home="runtime/torch_autocast.py",
    ),
)  # fmt: skip


def sub_group_of(share: int) -> int:
    """Elements that stage 3 updates at a time where a part of the state is offloaded.

    What is offloaded is a number of such groups (runtime/zero/stage3.py, subgroup_to_device).

    Args:
        share: elements of a rank.
    """
    return max(1, -(-share // _GROUPS))


def top_columns(recipe: Recipe) -> float:
    """Return the share of each matrix's columns that ZenFlow updates at once."""
    section: object = recipe.deepspeed.get("zero_optimization", {})
    own: object = section.get("zenflow") if isinstance(section, dict) else None
    ratio = own.get("topk_ratio") if isinstance(own, dict) else None
    return ratio if isinstance(ratio, float) else TOP_COLUMNS


def features_of(recipe: Recipe) -> list[Feature]:
    """Return the features that a recipe switches on."""
    return [feature for feature in FEATURES if feature.on(recipe)]


def given_by(feature: Feature, recipe: Recipe) -> str:
    """Return the key that switched a feature on: its own, or the one that stands for several."""
    name = feature.key.rpartition(".")[2]
    return "parallel.zeropp" if recipe.parallel.zeropp and name in ZEROPP else feature.key


def offloads_of(recipe: Recipe, offloads: Iterable[str]) -> tuple[str, ...]:
    """Return those of some offloads that all features of a recipe take."""
    on = [each for each in features_of(recipe) if each.offloads]
    return tuple(name for name in offloads if all(name in each.offloads for each in on))


def stages_of(recipe: Recipe, stages: Iterable[int]) -> tuple[int, ...]:
    """Return those of some ZeRO stages that all features of a recipe take."""
    on = features_of(recipe)
    return tuple(stage for stage in stages if all(stage in each.stages for each in on))
