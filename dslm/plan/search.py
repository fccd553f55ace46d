"""Choose what the recipe leaves open: stage, offload, micro batch, recomputation, parallel sizes.

Every combination that the recipe allows is estimated; the fastest that fits with the margin wins,
the simplest of equals. The global batch is never touched: only how it is split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from dslm.cluster.hosts import Cluster
from dslm.errors import RecipeError, Where
from dslm.plan.buckets import bucket_elements
from dslm.plan.memory import HOST_MARGIN, MARGIN, Memory, estimate
from dslm.plan.runnable import Permits, Sizes, goes, nothing_shared
from dslm.plan.strategy import Strategy
from dslm.plan.time import StepTime, predict
from dslm.profile.value import Profile
from dslm.recipe.features import ANY_STAGE, is_second, offloads_of, stages_of
from dslm.recipe.schema import Recipe
from dslm.units import divisors, number_of

_OFFLOADS = ("none", "optimizer", "all")
_EXPERT_STAGES = (1, 2)  # with which DeepSpeed's AutoEP has been seen to train
_CPU_MICRO_BATCH = 8  # more sequences at a time don't make a CPU faster


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One strategy with what it costs."""

    strategy: Strategy
    memory: Memory | None  # None: the model couldn't be traced
    time: StepTime | None  # None: the device's speed isn't known
    capacity: int
    host_capacity: int | None = None  # None: the host's memory isn't known

    @property
    def fits(self) -> bool:
        """Whether the peak leaves the margin free; what can't be known doesn't fit."""
        return self.memory is not None and self.fits_device and self.fits_host

    @property
    def fits_device(self) -> bool:
        """Whether each device has room."""
        return self.memory is None or self.memory.total <= self.capacity * (1 - MARGIN)

    @property
    def fits_host(self) -> bool:
        """Whether each host has room: where it hasn't, the kernel ends a rank (exit -9)."""
        if self.memory is None or self.host_capacity is None:
            return True
        return self.memory.host <= self.host_capacity * (1 - HOST_MARGIN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The choice, and everything that lost against it, best first."""

    choice: Candidate
    others: tuple[Candidate, ...]

    @property
    def strategy(self) -> Strategy:
        """What was chosen."""
        return self.choice.strategy

    @property
    def fits(self) -> bool:
        """Whether the choice fits."""
        return self.choice.fits


def choose(
    recipe: Recipe,
    cluster: Cluster,
    profile: Profile | None,
    permits: Permits = nothing_shared,
) -> Plan:
    """Choose the strategy of a recipe on a cluster.

    Args:
        recipe: what is trained.
        cluster: where.
        profile: the model's; None: it isn't known.
        permits: which sizes of shared work the model can be trained with, of those to choose from.

    Raises:
        RecipeError: the global batch can't be split over the ranks, the device doesn't compute in
            that precision, or no strategy is left.
    """
    check_precision(recipe, cluster)
    groups = parallel_sizes(recipe, cluster, profile, permits)
    strategies = [
        strategy
        for sizes, data_parallel in groups
        for strategy in _strategies(recipe, cluster, data_parallel, sizes=sizes, profile=profile)
    ]
    # where none goes, a check says why
    run = [one for one in strategies if goes(recipe, one.zero_stage, one.offload)] or strategies
    candidates = [_candidate(recipe, cluster, profile, strategy) for strategy in run]
    if not candidates:
        raise RecipeError(
            f"`parallel.offload: {recipe.parallel.offload}` doesn't work with ZeRO stage "
            f"{recipe.parallel.zero_stage}",
            where=Where(key="parallel"),
            hint="`optimizer` needs stage 1, 2 or 3; `all` and `nvme` need stage 3",
        )
    candidates.sort(key=_worth)
    return Plan(choice=candidates[0], others=tuple(candidates[1:]))


def check_precision(recipe: Recipe, cluster: Cluster) -> None:
    """Check that the device computes in the recipe's precision.

    Raises:
        RecipeError: it doesn't.
    """
    if cluster.device.supports(recipe.precision):
        return
    other = "bf16 or fp32" if cluster.device.kind == "cpu" else "fp16 or fp32"
    raise RecipeError(
        f"{cluster.device.name} doesn't train in {recipe.precision}",
        where=Where(key="precision"),
        hint=f"`--set precision={other.split(maxsplit=1)[0]}`, that is {other}",
    )


def parallel_sizes(
    recipe: Recipe, cluster: Cluster, profile: Profile | None, permits: Permits = nothing_shared
) -> list[tuple[Sizes, int]]:
    """Sizes of shared work that are possible, the recipe's own or all, each with data-parallel.

    Raises:
        RecipeError: none is; says which sizes would be.
    """
    found: list[tuple[Sizes, int]] = []
    first: RecipeError | None = None
    parallel = recipe.parallel
    asked = (parallel.tensor, parallel.sequence, parallel.expert)
    for tensor, sequence, expert in itertools.product(
        *(_sizes(size, cluster, profile, recipe) for size in asked)
    ):
        sizes = Sizes(tensor, sequence, expert)
        # sizes that the recipe itself says are refused with the reason, by whoever asks the checks
        proposed = any(
            size == "auto" and chosen > 1
            for size, chosen in zip(asked, (tensor, sequence, expert), strict=True)
        )
        mixed = expert > 1 and tensor * sequence > 1  # nobody has trained so
        if proposed and (
            mixed or not _divides(profile, sizes) or not permits(recipe, cluster, sizes)
        ):
            continue
        if tensor > 1 and sequence > 1:
            first = first or RecipeError(
                "DeepSpeed shares either layers or sequences between ranks, not both",
                where=Where(key="parallel.sequence"),
                hint="`--set parallel.tensor=1`",
            )
            continue
        try:
            size = data_parallel_size(recipe, cluster, tensor=tensor, sequence=sequence)
        except RecipeError as failure:
            first = first or failure
            continue
        found.append((sizes, size))
    if not found and first is not None:
        raise first
    return found


def _sizes(
    asked: int | str, cluster: Cluster, profile: Profile | None, recipe: Recipe
) -> list[int]:
    """The sizes to try: `auto` stays inside a host, and on a CPU it is for long samples."""
    if isinstance(asked, int):
        return [asked]
    if not traced(profile) or (cluster.device.kind == "cpu" and not recipe.model.long_context):
        return [1]
    return [size for size in (1, 2, 4, 8) if size <= cluster.slots_per_host]


def data_parallel_size(
    recipe: Recipe, cluster: Cluster, *, tensor: int = 1, sequence: int = 1
) -> int:
    """Data-parallel ranks: the world over tensor and sequence parallelism.

    Raises:
        RecipeError: the sizes don't divide; says which would.
    """
    inner = tensor * sequence
    if cluster.world_size % inner:
        raise RecipeError(
            f"{number_of(cluster.world_size, 'rank')} can't be grouped by tensor × sequence = "
            f"{inner}",
            where=Where(key="parallel"),
            hint=f"use a multiple of {inner} ranks",
        )
    size = cluster.world_size // inner
    batch, micro = recipe.batch.global_size, recipe.batch.micro_size
    unit = size * (micro if isinstance(micro, int) else 1)
    if batch % unit:
        lower, upper = batch // unit * unit, (batch // unit + 1) * unit
        sizes = f"{lower} or {upper}" if lower else f"{upper}"
        ranks = number_of(size, "data-parallel rank")
        of = f" with micro batches of {micro}" if isinstance(micro, int) else ""
        raise RecipeError(
            f"a global batch of {batch} can't be split over {ranks}{of}",
            where=Where(key="batch.global_size"),
            hint=f"{sizes} would work" + (", or `batch.micro_size: auto`" if of else ""),
        )
    return size


def traced(profile: Profile | None) -> TypeGuard[Profile]:
    """Whether a model's passes are known."""
    return profile is not None and bool(profile.passes)


def _divides(profile: Profile | None, sizes: Sizes) -> bool:
    """Return whether ranks can share a model's heads evenly; False for one without heads."""
    size = max(sizes.tensor, sizes.sequence)
    heads = (profile.heads, profile.kv_heads) if profile else (0, 0)
    return size == 1 or (all(heads) and all(number % size == 0 for number in heads))


def smallest_world(
    recipe: Recipe, cluster: Cluster, profile: Profile, permits: Permits = nothing_shared
) -> int | None:
    """The smallest number of such devices (a power of two) that fits; None: not even 16,384."""
    from dslm.cluster.hosts import Host

    for exponent in range(0, 15):
        world = 1 << exponent
        # hosts like these; of those that nobody knows, eight slots each
        known = cluster.slots_per_host if cluster.host_memory_bytes else 8
        per_host = min(world, max(known, cluster.slots_per_host))
        hosts = tuple(Host(f"host-{n}", per_host) for n in range(world // per_host))
        try:
            if choose(recipe, replace(cluster, hosts=hosts), profile, permits).fits:
                return world
        except RecipeError:
            continue
    return None


def _strategies(
    recipe: Recipe,
    cluster: Cluster,
    data_parallel: int,
    *,
    sizes: Sizes,
    profile: Profile | None,
) -> Iterator[Strategy]:
    parallel = recipe.parallel
    known = traced(profile)
    stages: tuple[int, ...]
    stages = (0, 1, 2, 3) if parallel.zero_stage == "auto" else (parallel.zero_stage,)
    if parallel.zero_stage == "auto" and (data_parallel * sizes.sequence == 1 or not known):
        # one rank has nothing to partition; of an unknown model, stage 2 is what mostly works
        stages = (0, 3) if known else (2,)
    offloads: tuple[str, ...] = (parallel.offload,)
    if parallel.offload == "auto":
        offloads = offloads_of(recipe, _OFFLOADS)
    if parallel.zero_stage == "auto":
        stages = stages_of(recipe, stages) or stages_of(recipe, ANY_STAGE)
        if sizes.tensor > 1:
            stages = tuple(stage for stage in stages if stage < 3)  # shared layers are small
        if sizes.expert > 1:
            stages = tuple(stage for stage in stages if stage in _EXPERT_STAGES)
    checkpointing = _checkpointing(recipe, cluster, known=known)
    if profile is not None and known and "recompute" not in profile.passes:
        checkpointing = (False,)  # the model's code has no recomputation
    per_rank = recipe.batch.global_size // data_parallel
    micros = _micro_batches(recipe, cluster, per_rank, known=known)
    for stage, offload, recompute, size, second in itertools.product(
        stages, offloads, checkpointing, micros, _seconds(recipe, cluster)
    ):
        if (offload in ("all", "nvme") and stage != 3) or (offload == "optimizer" and stage == 0):
            continue
        if recipe.parallel.hpz == "auto" and second and (stage != 3 or offload in ("all", "nvme")):
            continue
        yield Strategy(
            zero_stage=stage,
            offload=offload,
            micro_batch_size=size,
            gradient_accumulation_steps=per_rank // size,
            activation_checkpointing=recompute,
            tensor_parallel=sizes.tensor,
            sequence_parallel=sizes.sequence,
            data_parallel_size=data_parallel,
            expert_parallel=sizes.expert,
            second_partition=second,
        )


def _micro_batches(
    recipe: Recipe, cluster: Cluster, per_rank: int, *, known: bool
) -> Sequence[int]:
    micro = recipe.batch.micro_size
    if micro != "auto":
        return [micro]
    if not known:
        return [1]
    largest = _CPU_MICRO_BATCH if cluster.device.kind == "cpu" else per_rank
    return [size for size in divisors(per_rank) if size <= largest]


def _seconds(recipe: Recipe, cluster: Cluster) -> tuple[bool, ...]:
    """Whether parameters have a second partition; `auto` tries both where hosts have links."""
    if recipe.parallel.hpz != "auto" or is_second(recipe):
        return (is_second(recipe),)
    several = len(cluster.hosts) > 1 and cluster.slots_per_host > 1
    return (False, True) if several and cluster.device.kind != "cpu" else (False,)


def _checkpointing(recipe: Recipe, cluster: Cluster, *, known: bool) -> tuple[bool, ...]:
    """Return whether activations may be recomputed, and may be kept."""
    asked = recipe.model.activation_checkpointing
    if asked != "auto":
        return (asked,)
    if recipe.model.long_context:
        return (True,)
    if cluster.device.kind == "cpu":
        return (False,)
    return (False, True) if known else (True,)


def _candidate(
    recipe: Recipe, cluster: Cluster, profile: Profile | None, strategy: Strategy
) -> Candidate:
    capacity = cluster.device.memory_bytes
    if not traced(profile):
        return Candidate(
            strategy=strategy,
            memory=None,
            time=None,
            capacity=capacity,
            host_capacity=cluster.host_memory_bytes,
        )
    memory = estimate(
        recipe,
        profile,
        strategy,
        device_kind=cluster.device.kind,
        ranks_per_host=cluster.slots_per_host,
        buckets=bucket_elements(profile),
    )
    return Candidate(
        strategy=strategy,
        memory=memory,
        time=predict(recipe, profile, strategy, cluster),
        capacity=capacity,
        host_capacity=cluster.host_memory_bytes,
    )


# By how much faster a saving of memory must make a step before it is taken: what it costs in
# waiting and in what can go wrong, and what a prediction is off.
_HANDICAP = {"none": 1.0, "optimizer": 1.15, "all": 1.2, "nvme": 1.3}
_SHARING_HANDICAP = 1.1
_RECOMPUTING_HANDICAP = 1.02
_SECOND_HANDICAP = 1.05


def _worth(candidate: Candidate) -> tuple[float, ...]:
    """What is tried first: what fits, then the fastest, then the simplest."""
    strategy, memory = candidate.strategy, candidate.memory
    fits = candidate.fits
    shared = strategy.tensor_parallel * strategy.sequence_parallel * strategy.expert_parallel
    seconds = candidate.time.step_seconds if candidate.time else 0.0
    weighed = seconds * _HANDICAP[strategy.offload]
    weighed *= _SHARING_HANDICAP if shared > 1 else 1.0
    weighed *= _RECOMPUTING_HANDICAP if strategy.activation_checkpointing else 1.0
    weighed *= _SECOND_HANDICAP if strategy.second_partition else 1.0
    return (
        not fits,
        # what doesn't fit is ordered by how far off it is; of nearly equal speed the simplest wins
        0.0 if fits or memory is None else memory.total,
        float(f"{weighed:.2g}"),
        _HANDICAP[strategy.offload],
        shared,
        strategy.activation_checkpointing,
        strategy.second_partition,
        strategy.zero_stage,
        -strategy.micro_batch_size,
        seconds,
    )
