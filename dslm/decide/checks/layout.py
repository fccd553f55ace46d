"""Checks on ranks that share layers, sequences or experts: what divides, and what goes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dslm.cluster.hosts import Cluster
from dslm.decide.checks import facts
from dslm.decide.checks.base import ONLY_TRAIN, TRAINING, Case, Check, Problem
from dslm.decide.model import ModelSource
from dslm.plan.runnable import TASKS, Permits, Shared, Sizes, can_share
from dslm.recipe.packs import leaks, refusal
from dslm.recipe.schema import Recipe
from dslm.units import divisors, listed, number_of
from dslm.zero.experts import EXPERT_TYPES

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# entries of a config with which attention is more than causal, full or within a window
_OTHERWISE = (
    "attn_logit_softcapping", "attention_chunk_size", "use_bidirectional_attention", "alibi",
)  # fmt: skip
# optimizers whose state has other shapes than the parameters
_FACTORED = ("adafactor", "muon")
# heads whose queries and values differ in size (multi-head latent attention)
_LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim")


def _sizes(case: Case) -> Sizes:
    """How many ranks share what, in the plan or else in the recipe."""
    parallel, strategy = case.recipe.parallel, case.strategy
    if strategy is not None:
        return Sizes(strategy.tensor_parallel, strategy.sequence_parallel, strategy.expert_parallel)
    asked = (parallel.tensor, parallel.sequence, parallel.expert)
    return Sizes(*(size if isinstance(size, int) else 1 for size in asked))


def _heads(case: Case) -> Iterator[Problem]:
    """Sizes that share the heads of the model evenly."""
    sizes = _sizes(case)
    heads = _entry(case, "num_attention_heads")
    shared = _entry(case, "num_key_value_heads")
    for key, size in (("tensor", sizes.tensor), ("sequence", sizes.sequence)):
        if type(heads) is int and heads % size:
            near = divisors(heads, least=2) or [1]
            yield Problem(
                key=f"parallel.{key}",
                message=f"{size} ranks can't share {number_of(heads, 'head')} evenly",
                hint=f"{' or '.join(map(str, near[:4]))} would work",
            )
        elif type(shared) is int and shared > 0 and shared % size and size % shared:
            yield Problem(
                key=f"parallel.{key}",
                message=f"{size} ranks can't share {shared} key-value heads evenly",
                hint=f"a divisor or a multiple of {shared} would work",
            )


def _length(case: Case) -> Iterator[Problem]:
    size, length = _sizes(case).sequence, case.recipe.data.sequence_length
    if length % size:
        below = length // size * size
        sizes = f"{below} or {below + size}" if below else f"{size}"
        yield Problem(
            key="data.sequence_length",
            message=f"{size} ranks can't share sequences of {length} tokens evenly",
            hint=f"{sizes} tokens would work",
        )


def _experts(case: Case) -> Iterator[Problem]:
    """A mixture of experts that DeepSpeed knows, and experts that are shared evenly."""
    size = _sizes(case).expert
    if size == 1:
        return
    kind = case.architecture.get("model_type")
    count = next((n for name in _EXPERTS if type(n := _entry(case, name)) is int and n > 0), None)
    if kind is None:
        pass  # a model of the Hub that nobody has loaded here: the ranks see what it is
    elif kind not in EXPERT_TYPES:
        yield Problem(
            key="parallel.expert",
            message=f"DeepSpeed can't share the experts of a model of type `{kind}`"
            if count
            else f"a model of type `{kind}` has no experts to share",
            hint=f"it can those of {', '.join(sorted(EXPERT_TYPES))}"
            if count
            else "`--set parallel.expert=1`",
        )
    elif count is not None and count % size:
        fits = divisors(count, least=2) or [1]
        yield Problem(
            key="parallel.expert",
            message=f"{size} ranks can't share {number_of(count, 'expert')} evenly",
            hint=f"{' or '.join(map(str, fits[-4:]))} would work",
        )
    if case.cluster.world_size % size:
        yield Problem(
            key="parallel.expert",
            message=f"{number_of(case.cluster.world_size, 'rank')} can't be grouped by {size}",
            hint=f"use a multiple of {size} ranks",
        )


def _entry(case: Case, name: str) -> object:
    return case.kind.value(case.architecture, name) if case.kind else case.architecture.get(name)


def _crosses_hosts(case: Case, size: int) -> bool:
    """Return whether a group of so many neighbouring ranks would have ranks on two hosts."""
    hosts = case.cluster.hosts
    return len(hosts) > 1 and any(host.slots % size for host in hosts)


@dataclass(frozen=True, slots=True)
class _Apart:
    """Two things that don't go together, with the reason."""

    key: str
    clashes: Callable[[Case, Sizes], bool]
    message: str
    hint: str


def _lacks(case: Case, what: str) -> bool:
    return case.kind is not None and bool(case.kind.heads) and what not in case.kind.code


def _portable(case: Case, sizes: Sizes) -> bool:
    """Return whether checkpoints hold each moment whole, as the worker decides it."""
    shared = sizes.tensor > 1 or sizes.expert > 1
    return shared or case.recipe.checkpoint.format == "portable"


def _of(what: Shared) -> str:
    """Name the tasks in which ranks can share something."""
    return listed(sorted(TASKS[what]))


_APART = (
    _Apart(
        "lora", lambda c, s: c.recipe.lora is not None and (s.tensor > 1 or s.expert > 1),
        "adapters can't be put on layers or experts that ranks share",
        "leave `parallel.tensor` and `parallel.expert` out, or `lora`",
    ),
    _Apart(
        "optimizer.name", lambda c, s: c.recipe.optimizer.name in _FACTORED and _portable(c, s),
        "the state of this optimizer is not kept for each parameter, so it has no portable form",
        "`--set optimizer.name=adamw`, or native checkpoints without shared layers or experts",
    ),
    _Apart(
        "parallel.tensor", lambda c, s: s.tensor > 1 and _lacks(c, "shared layers"),
        "DeepSpeed doesn't know how ranks share the layers of a model of this type",
        "`--set parallel.tensor=1`, and `parallel.zero_stage: 3` partitions the model",
    ),
    _Apart(
        "parallel.sequence",
        lambda c, s: s.sequence > 1
        and (_lacks(c, "attention by name") or any(c.architecture.get(n) for n in _OTHERWISE)),
        "the attention of a model of this type is not one that ranks can share sequences for",
        "`--set parallel.sequence=1`",
    ),
    _Apart(
        "parallel.sequence",
        lambda c, s: s.sequence > 1 and not can_share("sequence", c.recipe.task),
        f"sequences can be shared by ranks in the tasks {_of('sequence')} only",
        "`--set parallel.sequence=1`",
    ),
    _Apart(
        "parallel.sequence",
        lambda c, s: s.sequence > 1 and any(c.architecture.get(name) for name in _LATENT),
        "sequences can't be shared in a model whose queries and values have heads of two sizes",
        "`--set parallel.sequence=1`",
    ),
    _Apart(
        "model.tiled_loss", lambda c, s: s.tensor > 1 and c.recipe.model.tiled_loss is True,
        "ranks that share layers share the head, and a loss in tiles is computed there",
        "`--set model.tiled_loss=false`, or `model.chunked_loss: true`",
    ),
    _Apart(
        "parallel.tensor", lambda c, s: _crosses_hosts(c, s.tensor),
        "a group of ranks that share layers would cross hosts, and it talks in every layer",
        "choose a divisor of each host's slots",
    ),
    _Apart(
        "parallel.tensor", lambda c, s: s.tensor > 1 and not can_share("tensor", c.recipe.task),
        f"layers can be shared by ranks in the tasks {_of('tensor')} only",
        "`--set parallel.tensor=1`, and `parallel.zero_stage: 3` partitions the model",
    ),
)  # fmt: skip


def _together(case: Case) -> Iterator[Problem]:
    sizes = _sizes(case)
    for row in _APART:
        if row.clashes(case, sizes):
            yield Problem(key=row.key, message=row.message, hint=row.hint)


def _packs(case: Case) -> Iterator[Problem]:
    """Find packs whose documents see each other, as far as it was measured."""
    if case.profile is not None and leaks(case.recipe, case.profile.apart):
        message, hint = refusal(case.profile.model_type)
        yield Problem(key="data.packing", message=message, hint=hint)


CHECKS = (
    Check(
        name="documents that don't see each other",
        looks_at="data.packing, task, model_type, model.attention",
        judge=_packs,
        verbs=TRAINING,
        planned=True,
    ),
    Check(
        name="heads that ranks can share",
        looks_at="parallel.tensor, parallel.sequence, num_attention_heads",
        judge=_heads,
    ),
    Check(
        name="sequences that ranks can share",
        looks_at="parallel.sequence, data.sequence_length",
        judge=_length,
        verbs=TRAINING,
    ),
    Check(
        name="experts that ranks can share",
        looks_at="parallel.expert, model_type",
        judge=_experts,
    ),
    Check(
        name="ranks that share what goes together",
        looks_at="parallel.tensor, parallel.sequence, parallel.expert",
        judge=_together,
        verbs=ONLY_TRAIN,
        planned=True,
    ),
)


def permits_of(source: ModelSource) -> Permits:
    """Return which sizes a model can be trained with: those that no check here refuses."""
    kind = facts.model_type(str(source.architecture.get("model_type")))

    def permits(recipe: Recipe, cluster: Cluster, sizes: Sizes) -> bool:
        if not source.architecture:  # of which nobody knows what it can
            return sizes.alone
        shared = {"tensor": sizes.tensor, "sequence": sizes.sequence, "expert": sizes.expert}
        parallel = recipe.parallel.model_copy(update=shared)
        case = Case(
            recipe=recipe.model_copy(update={"parallel": parallel}),
            source=source,
            kind=kind,
            cluster=cluster,
            here=False,
        )
        return not any(True for check in CHECKS for _ in check.judge(case))

    return permits
