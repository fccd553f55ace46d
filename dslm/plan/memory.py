"""Memory of one rank, itemised, and of one host: from a profile and a strategy to bytes.

Plain numbers; nothing is measured here and nothing is chosen. Model states and DeepSpeed's buffers
come from the modules of the stages, activations from the profile's levels; together they are a
ledger, and a phase is the highest of its moments. docs/planner-accuracy.md holds the sums against
DeepSpeed itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dslm.plan.activations import activations, evaluation, pass_levels
from dslm.plan.away import away_terms
from dslm.plan.experts import held
from dslm.plan.few_bits import elements_less, few_bits_terms
from dslm.plan.ledger import Moment, Term, at, phases
from dslm.plan.stage_0 import without_zero
from dslm.plan.stage_3 import stage_3
from dslm.plan.stages_1_2 import stages_1_and_2
from dslm.plan.states import FP32, REUSE, STATE_BYTES, SUB_GROUP, MemoryInputs, RankMemory
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile
from dslm.recipe.features import sub_group_of, top_columns
from dslm.recipe.preferences import reference_of
from dslm.recipe.schema import Recipe

# A CUDA context with cuBLAS and NCCL's buffers: 0.5 to 0.9 GiB as nvidia-smi shows it; on a CPU
# the process itself: Python, torch, DeepSpeed, transformers and gloo.
CONTEXT_BYTES = {"cuda": int(0.8 * 2**30), "rocm": int(0.8 * 2**30), "cpu": int(0.6 * 2**30)}
# The process of a rank on its host, beside an accelerator: the same libraries, and CUDA's own.
PROCESS_BYTES = 2 * 2**30
# What a plan leaves free: the allocator's fragmentation, and what no formula knows.
MARGIN = 0.06
# The same for a host, whose other processes and page cache need room.
HOST_MARGIN = 0.1
_STAGES = {0: without_zero, 1: stages_1_and_2, 2: stages_1_and_2, 3: stage_3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on a rank's device by item, the peak of each phase, and bytes on each host."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    context: int
    phases: dict[str, int]
    host: int  # the most, over the phases of the run
    host_items: dict[str, int]  # pinned, pageable, process, loading, export; of all its ranks
    host_states: int  # pinned and pageable, of one rank
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """The highest phase."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def peak_moment(self) -> Moment:
        """The moment that needs the most."""
        return max(Moment, key=lambda moment: at(self.terms, moment))


def estimate(
    recipe: Recipe,
    profile: Profile,
    strategy: Strategy,
    *,
    device_kind: str,
    ranks_per_host: int,
    buckets: int,
) -> Memory:
    """Plan the memory of a run.

    Args:
        recipe: precision, optimizer, sequence length.
        profile: the model's, with passes.
        strategy: how it is partitioned, with every size resolved.
        device_kind: cpu, cuda or rocm.
        ranks_per_host: how many ranks share a host's memory.
        buckets: elements in each of DeepSpeed's communication buckets.
    """
    on_cpu = device_kind == "cpu"
    inputs = _inputs(
        recipe, profile, strategy, on_cpu=on_cpu, ranks_per_host=ranks_per_host, buckets=buckets
    )
    states = _STAGES[inputs.stage](inputs)
    seen = pass_levels(recipe, profile, strategy)
    held = pass_levels(recipe, profile, strategy, with_held=True)
    away = away_terms(recipe, profile, strategy)
    context = Term(
        name="context", bytes=CONTEXT_BYTES[device_kind], lives=frozenset(Moment),
        source="what the process itself takes of the device", kind="context",
    )  # fmt: skip
    terms = (
        context,
        *states.terms,
        *activations(states, seen, held),
        *away,
        *evaluation(recipe, profile, strategy),
        *few_bits_terms(recipe, profile, strategy, states.terms),
        *_drawing(recipe, inputs, states, on_cpu=on_cpu),
    )
    found = phases(terms)
    states = replace(states, terms=(*states.terms, *away))
    total, items = _host(recipe, inputs, states, found, ranks=ranks_per_host, on_cpu=on_cpu)
    return Memory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=int(held.before_head),
        logits=int(max(held.forward, held.head.let_go) - held.before_head),
        buffers=states.buffers,
        context=sum(term.bytes for term in terms if term.kind == "context"),
        phases=found,
        host=total,
        host_items=items,
        host_states=states.host,
        terms=terms,
    )


def _drawing(
    recipe: Recipe, inputs: MemoryInputs, states: RankMemory, *, on_cpu: bool
) -> list[Term]:
    """Return weights that are drawn in fp32 before they are cast.

    Under stage 3 one at a time, which is partitioned before the next; else all of them, on a CPU in
    the same memory.
    """
    if recipe.model.init != "scratch" or not (on_cpu or inputs.stage == 3):
        return []
    if inputs.stage == 3:
        # a head that becomes the table is made all the same
        itself = 0 if inputs.tied else inputs.element * inputs.largest // inputs.ranks
        others = states.parameters - itself
        drawn = others + (FP32 + inputs.element * inputs.half) * inputs.largest
        source = "zero/partition_parameters.py, zero_wrapper_for_fp_tensor_constructor"
    else:
        drawn = FP32 * (inputs.trained + inputs.frozen + inputs.largest)
        source = "transformers draws weights in fp32"
    more = max(0, drawn - at(states.terms, Moment.INIT))
    return [
        Term(name="weights as drawn", bytes=more, lives=frozenset({Moment.INIT}), source=source)
    ]


def _state_bytes(recipe: Recipe, profile: Profile, strategy: Strategy) -> float:
    """Bytes of the optimizer's own state of a trained parameter, on average.

    Source: DeepSpeed's set_optimizer_flags: Muon updates matrices that aren't embeddings or heads,
    Adam the rest; transformers' Adafactor keeps a row and a column of a matrix that is still one.
    """
    name = recipe.optimizer.name
    groups = [group for group in profile.parameters if group.trained]
    trained = max(1, profile.trained)
    if name == "muon":
        rest = sum(
            g.total
            for g in groups
            if len(g.shape) < 2 or any(word in g.name.lower() for word in ("embed", "lm_head"))
        )
        return STATE_BYTES[name] + (STATE_BYTES["adam"] - STATE_BYTES[name]) * rest / trained
    as_matrices = strategy.zero_stage == 0 and (recipe.autocast or recipe.precision == "fp32")
    if name == "adafactor" and as_matrices:
        kept = sum(
            g.total // g.shape[-1] + g.total // g.shape[-2] if len(g.shape) > 1 else g.total
            for g in groups
        )
        return FP32 * kept / trained
    # DeepSpeed's own for a host has a second moment that it never reads (ops/lion/cpu_lion.py)
    return STATE_BYTES["adam" if name == "lion" and strategy.offload != "none" else name]


def _scratch(recipe: Recipe, *, on_cpu: bool) -> int:
    """Tensors in fp32 that an update makes beside its state: fused kernels none.

    On a CPU torch's Adam is fused, too, unless the recipe's own section says otherwise.

    Source: torch.optim.adam._single_tensor_adam, the root of the second moment and the denominator,
    and a gradient with the decay; sgd._single_tensor_sgd, the latter; transformers' Adafactor.step,
    an update and its negative.
    """
    name, decays = recipe.optimizer.name, int(recipe.optimizer.weight_decay > 0)
    own = {"adafactor": 2, "sgd": decays}
    of_torch = {"adamw": 2, "adam": 2 + decays}
    section: object = recipe.deepspeed.get("optimizer", {})
    params = section.get("params", {}) if isinstance(section, dict) else {}
    plain = on_cpu and isinstance(params, dict) and params.get("fused") is False
    return (own | of_torch if plain else own).get(name, 0)


def _zero(recipe: Recipe, key: str, default: int) -> int:
    """A size of the recipe's own `deepspeed.zero_optimization`."""
    section: object = recipe.deepspeed.get("zero_optimization", {})
    value = section.get(key) if isinstance(section, dict) else None
    return int(value) if isinstance(value, int | float) and value > 0 else default


def _selected(recipe: Recipe, profile: Profile, strategy: Strategy) -> list[int]:
    """Elements of each trained parameter that ZenFlow updates at once.

    Source: runtime/zenflow/zenflow_stage_1_and_2.py: a share of a matrix's columns, and whole
    vectors.
    """
    if not recipe.parallel.zenflow:
        return []
    share = top_columns(recipe)
    found = []
    for group in profile.parameters:
        if group.trained:
            columns = group.shape[1] if len(group.shape) == 2 else 0
            part = max(1, int(share * columns)) / columns if columns else 1
            found += [int(part * held(group, strategy) / group.count)] * group.count
    return found


def _inputs(
    recipe: Recipe,
    profile: Profile,
    strategy: Strategy,
    *,
    on_cpu: bool,
    ranks_per_host: int,
    buckets: int,
) -> MemoryInputs:
    whole = replace(strategy, expert_parallel=1)
    trained, frozen, partitioned = (
        sum(held(group, sharing) for group in profile.parameters if group.trained is kind)
        for kind, sharing in ((True, strategy), (False, strategy), (True, whole))
    )
    packed = elements_less(recipe, profile)
    frozen -= packed
    if reference_of(recipe) == "model" and not frozen:
        frozen = trained  # the model as it was at the start, which the loss compares with
    ranks = strategy.data_parallel_size * strategy.sequence_parallel
    selected = _selected(recipe, profile, strategy)
    return MemoryInputs(
        trained=trained,
        partitioned=partitioned,
        frozen=frozen,
        largest=profile.largest,
        largest_trained=profile.largest_trained,
        layer=profile.layer - packed // max(1, profile.layers),
        head=profile.trained_head,
        tied=profile.tied,
        # recomputation asks for the gradient of what the table gives (dslm/worker/adapters.py)
        passed=0 if strategy.activation_checkpointing else profile.passed,
        element=FP32 if recipe.autocast or recipe.precision == "fp32" else 2,
        optimizer=recipe.optimizer.name,
        state=_state_bytes(recipe, profile, strategy),
        scratch=_scratch(recipe, on_cpu=on_cpu),
        stage=strategy.zero_stage,
        ranks=min(ranks, _zero(recipe, "mics_shard_size", ranks)),
        offload=strategy.offload,
        accumulates=strategy.gradient_accumulation_steps > 1,
        on_cpu=on_cpu,
        bucket=_zero(recipe, "reduce_bucket_size", buckets),
        overlaps=not on_cpu and strategy.zero_stage > 0 and recipe.parallel.overlap is not False,
        reuse=min(
            _zero(recipe, "stage3_max_reuse_distance", REUSE),
            _zero(recipe, "stage3_max_live_parameters", REUSE),
        ),
        sub_group=_zero(
            recipe,
            "sub_group_size",
            sub_group_of(-(-trained // ranks)) if recipe.parallel.offload_ratio < 1 else SUB_GROUP,
        ),
        secondary=min(ranks_per_host, ranks) if strategy.second_partition else 0,
        selected=sum(selected),
        selected_largest=max(selected, default=0),
        ratio=recipe.parallel.offload_ratio,
        pinned=not on_cpu,
        apart=ranks_per_host if recipe.parallel.super_offload else 0,
    )


def _host(
    recipe: Recipe,
    inputs: MemoryInputs,
    states: RankMemory,
    phases: dict[str, int],
    *,
    ranks: int,
    on_cpu: bool,
) -> tuple[int, dict[str, int]]:
    """Bytes on one host, of all its ranks together: the most at a time, and the parts.

    Source: every rank of stages 0 to 2 makes or loads the whole model before it goes to its device
    (transformers' from_pretrained; in fp32 when made from nothing); under stage 3 only rank 0 reads
    the weights (modeling_utils.py, _load_pretrained_model); at the export rank 0 gathers the model
    (engine._zero3_consolidated_16bit_state_dict).
    """
    whole = inputs.trained + inputs.frozen
    scratch = recipe.model.init == "scratch"
    if inputs.stage == 3:
        loading = 0 if scratch else inputs.element * whole
    else:
        loading = ranks * (FP32 if scratch else inputs.element) * whole
    export = inputs.element * whole
    if on_cpu:
        # device and host are one: a rank's phases are what it takes
        peak = ranks * (max(phases.values()) + states.host)
        at_export = ranks * (phases["export"] + states.host) + export
        parts = {"pinned": 0, "pageable": peak, "process": 0}
        total = max(peak, at_export, loading)
    else:
        pinned, pageable = ranks * states.pinned, ranks * states.pageable
        process = ranks * PROCESS_BYTES
        parts = {"pinned": pinned, "pageable": pageable, "process": process}
        total = process + max(pinned + pageable + export, loading)
    return total, {**parts, "loading": loading, "export": export}
