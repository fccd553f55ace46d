"""The values of a DeepSpeed config that the features of a recipe are, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dslm.cluster.hosts import Cluster
from dslm.codec import Json
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile
from dslm.recipe.features import TOP_COLUMNS, features_of, given_by, sub_group_of
from dslm.recipe.schema import Recipe

_ZERO = "zero_optimization"
_HOST = f"{_ZERO}.offload_optimizer"
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of the config, where it comes from, and why it is there."""

    key: str
    value: Json
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class _Given:
    """What values may depend on."""

    recipe: Recipe
    cluster: Cluster
    strategy: Strategy
    profile: Profile | None


_Value = Callable[[_Given], Json]


def _always(value: Json) -> _Value:
    return lambda given: value


def _sub_group(given: _Given) -> Json:
    profile, strategy = given.profile, given.strategy
    ranks = strategy.data_parallel_size * strategy.sequence_parallel
    return sub_group_of(-(-profile.trained // ranks)) if profile else None


# By a feature's key: the keys of the config, their values, and a reason where it isn't the recipe.
_VALUES: Mapping[str, tuple[tuple[str, _Value, str], ...]] = {
    "parallel.hpz": (
        (
            f"{_ZERO}.zero_hpz_partition_size", lambda g: g.cluster.slots_per_host,
            "the second partition spans one host's slots",
        ),
    ),
    "parallel.quantized_weights": ((f"{_ZERO}.zero_quantized_weights", _always(True), ""),),
    "parallel.quantized_gradients": ((f"{_ZERO}.zero_quantized_gradients", _always(True), ""),),
    "parallel.offload_ratio": (
        (f"{_HOST}.ratio", lambda g: g.recipe.parallel.offload_ratio, ""),
        (
            f"{_ZERO}.sub_group_size", _sub_group,
            "what is moved is a number of such groups: enough of them for that share",
        ),
    ),
    "parallel.super_offload": ((f"{_HOST}.super_offload", _always(True), ""),),
    "parallel.zenflow": (
        (f"{_ZERO}.zenflow.topk_ratio", _always(TOP_COLUMNS), "DeepSpeed's default"),
        (f"{_ZERO}.zenflow.select_strategy", _always("step"), "by steps, as a run counts"),
        (f"{_ZERO}.zenflow.select_interval", _always(16), "steps between choices of columns"),
        (f"{_ZERO}.zenflow.update_interval", _always(4), "steps between updates of the others"),
    ),
    "parallel.overlap": ((f"{_ZERO}.overlap_comm", _always(True), ""),),
    "model.deepcompile": (("compile.deepcompile", _always(True), ""),),
    "autocast": (
        ("torch_autocast.enabled", _always(True), ""),
        ("torch_autocast.dtype", lambda g: _DTYPES.get(g.recipe.precision), ""),
    ),
}  # fmt: skip


def settings_of(
    recipe: Recipe, cluster: Cluster, strategy: Strategy, profile: Profile | None
) -> Iterator[Setting]:
    """Return what the features of a recipe set."""
    given = _Given(recipe, cluster, strategy, profile)
    for feature in features_of(recipe):
        key = given_by(feature, recipe)
        for path, value_of, why in _VALUES.get(feature.key, ()):
            value = value_of(given)
            if value is not None:
                yield Setting(path, value, "computed" if why else "recipe", why or key)
    if recipe.parallel.overlap is False and strategy.zero_stage:
        yield Setting(f"{_ZERO}.overlap_comm", False, "recipe", "parallel.overlap")
