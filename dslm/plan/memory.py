"""Memory of one rank, itemised, and of one host: from a shape and a strategy to bytes.

Plain numbers; nothing is measured here and nothing is chosen. Model states and DeepSpeed's buffers
come from `states`, what autograd keeps from `activations`; here they are put together, phase by
phase. docs/planner-accuracy.md holds the sums against DeepSpeed itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dslm.plan.activations import PACKED, Activations, Pass, activations
from dslm.plan.shape import ModelShape
from dslm.plan.states import FP32, REUSE, SUB_GROUP, Held, Setting, held
from dslm.plan.strategy import Strategy
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

    @property
    def total(self) -> int:
        """The highest phase."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: self.phases[phase])


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Trained parameters with adapters on every linear layer of the decoder."""
    h, i, a, k = shape.hidden_size, shape.intermediate_size, shape.attention_width, shape.kv_width
    # the input of each linear layer and its output; of query, key and value, one layer or three
    attention = (h + a) + (h + a + 2 * k if shape.model_type in PACKED else 3 * h + a + 2 * k)
    # experts are no linear layers but one parameter for all of them: peft leaves them alone
    mlp = 0 if shape.experts else (h + i) * (3 if shape.gated_mlp else 2)
    return rank * (attention + mlp) * (shape.layers + shape.encoder_layers)


def estimate(
    recipe: Recipe,
    shape: ModelShape,
    strategy: Strategy,
    *,
    device_kind: str,
    ranks_per_host: int,
    buckets: int,
) -> Memory:
    """The memory of a run.

    Args:
        recipe: precision, optimizer, sequence length, LoRA.
        shape: the model's shape.
        strategy: how it is partitioned, with every size resolved.
        device_kind: cpu, cuda or rocm.
        ranks_per_host: how many ranks share a host's memory.
        buckets: elements in each of DeepSpeed's communication buckets.
    """
    on_cpu = device_kind == "cpu"
    setting = _setting(
        recipe, shape, strategy, on_cpu=on_cpu, ranks_per_host=ranks_per_host, buckets=buckets
    )
    states = held(setting)
    one = pass_of(recipe, shape, strategy, on_cpu=on_cpu)
    seen = activations(shape, one)
    context = CONTEXT_BYTES[device_kind]
    phases = _phases(recipe, setting, states, seen, one, context, on_cpu=on_cpu)
    total, items = _host(recipe, setting, states, phases, ranks=ranks_per_host, on_cpu=on_cpu)
    return Memory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=seen.kept,
        logits=seen.logits,
        buffers=states.buffers,
        context=context,
        phases=phases,
        host=total,
        host_items=items,
        host_states=states.host,
    )


def pass_of(recipe: Recipe, shape: ModelShape, strategy: Strategy, *, on_cpu: bool) -> Pass:
    """The forward and backward pass of one micro batch."""
    length = recipe.data.sequence_length
    if recipe.task == "vision":
        length = shape.patches + 1
    attention = recipe.model.attention
    return Pass(
        # a preference is two sequences: what was chosen and what was rejected
        sequences=strategy.micro_batch_size * (2 if recipe.task == "dpo" else 1),
        length=max(1, length // strategy.sequence_parallel),
        keys=length,
        element=FP32 if recipe.precision == "fp32" else 2,
        attention="sdpa" if attention == "auto" else attention,
        masked=masked(recipe),
        on_cpu=on_cpu,
        checkpointing=strategy.activation_checkpointing,
        liger=recipe.model.liger is True,
        tensor_parallel=strategy.tensor_parallel,
        causal=recipe.task not in ("mlm", "seq2seq", "vision", "classify"),
        classifies=recipe.task in ("classify", "vision"),
        lora_rank=recipe.lora.rank if recipe.lora else 0,
    )


def masked(recipe: Recipe) -> bool:
    """Whether attention gets an explicit mask: documents that share a sample, or padding."""
    return recipe.task != "vision"


def _zero(recipe: Recipe, key: str, default: int) -> int:
    """A size of the recipe's own `deepspeed.zero_optimization`."""
    section: Any = recipe.deepspeed.get("zero_optimization", {})
    value = section.get(key) if isinstance(section, dict) else None
    return int(value) if isinstance(value, int | float) and value > 0 else default


def _setting(
    recipe: Recipe,
    shape: ModelShape,
    strategy: Strategy,
    *,
    on_cpu: bool,
    ranks_per_host: int,
    buckets: int,
) -> Setting:
    tensor = strategy.tensor_parallel
    # AutoTP shares the layers; embeddings and head are on every rank
    layers = (shape.layers + shape.encoder_layers) * shape.layer_parameters
    total = shape.parameters - layers + -(-layers // tensor) if tensor > 1 else shape.parameters
    trained, frozen = total, 0
    if recipe.lora is not None:
        trained, frozen = lora_parameters(shape, recipe.lora.rank) // tensor, total
    elif recipe.task == "dpo":
        frozen = total  # the model as it was at the start, which the loss compares with
    ranks = strategy.data_parallel_size * strategy.sequence_parallel
    overlaps = not on_cpu and strategy.zero_stage > 0
    embedding = shape.vocab_size * shape.hidden_size
    return Setting(
        trained=trained,
        frozen=frozen,
        # the experts of a layer are one parameter, gate and up in it side by side
        largest=max(
            embedding, shape.hidden_size * shape.intermediate_size * (2 * shape.experts or 1)
        ),
        layer=shape.layer_parameters,
        embedding=embedding,
        tied=shape.tied_head,
        element=FP32 if recipe.precision == "fp32" else 2,
        optimizer=recipe.optimizer.name,
        stage=strategy.zero_stage,
        ranks=min(ranks, _zero(recipe, "mics_shard_size", ranks)),
        offload=strategy.offload,
        accumulates=strategy.gradient_accumulation_steps > 1,
        on_cpu=on_cpu,
        bucket=_zero(recipe, "reduce_bucket_size", buckets),
        overlaps=overlaps,
        reuse=min(
            _zero(recipe, "stage3_max_reuse_distance", REUSE),
            _zero(recipe, "stage3_max_live_parameters", REUSE),
        ),
        sub_group=_zero(recipe, "sub_group_size", SUB_GROUP),
        secondary=min(ranks_per_host, ranks) if recipe.parallel.zeropp else 0,
        pinned=not on_cpu,
    )


def _phases(
    recipe: Recipe,
    setting: Setting,
    states: Held,
    seen: Activations,
    one: Pass,
    context: int,
    *,
    on_cpu: bool,
) -> dict[str, int]:
    """The most of each phase.

    In the backward pass activations go as gradients come, so its peak is at the loss, in the last
    layer, in the first one, or at the end.
    """
    resident = context + states.resident
    through = resident + states.carried + states.gathered
    again = seen.layer if one.checkpointing else 0  # the layer that is computed once more
    backward = max(
        through + seen.kept + seen.loss_backward,
        through + seen.kept - seen.behind + again + seen.temporary + states.arriving,
        through + seen.layer_input + seen.layer + seen.temporary + states.first_layer,
        resident + states.carried + states.backward_end,
    )
    init = context + states.init
    if on_cpu and recipe.model.init == "scratch" and setting.stage < 3:
        # the model is drawn in fp32 before the engine casts it
        init = max(init, context + FP32 * (setting.trained + setting.frozen + setting.largest))
    step = resident + states.step
    return {
        "init": init,
        "forward": through + seen.kept + seen.loss_forward,
        "backward": backward,
        "step": step,
        "evaluation": resident + states.gathered + seen.layer + seen.loss_forward,
        # written from where the tensors are; stage 3 gathers one at a time to export
        "checkpoint": resident,
        "export": resident + (setting.element * setting.largest if setting.stage == 3 else 0),
    }


def _host(
    recipe: Recipe,
    setting: Setting,
    states: Held,
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
    whole = setting.trained + setting.frozen
    scratch = recipe.model.init == "scratch"
    if setting.stage == 3:
        loading = 0 if scratch else setting.element * whole
    else:
        loading = ranks * (FP32 if scratch else setting.element) * whole
    export = setting.element * whole
    if on_cpu:
        # device and host are one: a rank's phases are what it takes
        peak = ranks * (max(phases.values()) + states.host)
        at_export = ranks * (phases["export"] + states.host) + export
        parts = {"pinned": 0, "pageable": peak, "process": 0}
        total = max(peak, at_export, loading)
    else:
        pinned, pageable = ranks * states.host_pinned, ranks * states.host_pageable
        process = ranks * PROCESS_BYTES
        parts = {"pinned": pinned, "pageable": pageable, "process": process}
        total = process + max(pinned + pageable + export, loading)
    return total, {**parts, "loading": loading, "export": export}
