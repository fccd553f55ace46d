"""What DeepSpeed keeps for a rank under ZeRO 1 and 2.

It follows zero/stage_1_and_2.py of DeepSpeed 0.19.
"""

from __future__ import annotations

from dslm.plan.ledger import BACKWARD, PASS, RUN, Moment, Term
from dslm.plan.state_terms import (
    gradients_on_their_way,
    head_copies,
    on_host,
    resident_terms,
    term,
    update_scratch,
)
from dslm.plan.states import FP32, MemoryInputs, RankMemory, States, states_of

_SOURCE = "zero/stage_1_and_2.py"
_ZENFLOW = "ops/adam/zenflow_torch_adam.py"


def stages_1_and_2(inputs: MemoryInputs) -> RankMemory:
    """Return what a rank keeps where optimizer states, or gradients too, are partitioned."""
    states = states_of(inputs)
    partition = 0 if inputs.offload != "none" else inputs.element * inputs.share
    carried, gradients = _gradients(inputs, partition)
    late = inputs.stage == 1 and not inputs.overlaps  # all is reduced at the end
    return RankMemory(
        parameters=states.parameters,
        gradients=gradients,
        optimizer=states.optimizer,
        stay=late and not inputs.accumulates,
        arrived=0 if late else partition,
        terms=(
            *resident_terms(states, _SOURCE),
            term("gradients so far", carried, PASS | {Moment.GRADIENTS}, "all_grad_tensors",
                 "gradients"),
            term("gradients", gradients - carried, {Moment.GRADIENTS}, _SOURCE, "gradients"),
            *_communication(inputs, partition, late=late),
            *_update(inputs, states),
            *_offloaded(inputs, states),
            *_selected(inputs),
        ),
    )  # fmt: skip


def _gradients(inputs: MemoryInputs, partition: int) -> tuple[int, int]:
    """Bytes of gradients that stay from one micro batch to the next, and at the end of a pass."""
    whole = inputs.element * inputs.trained
    if inputs.stage == 1 and (inputs.accumulates or not inputs.overlaps):
        # reduced only after the last backward pass
        return whole if inputs.accumulates else 0, whole + partition
    if inputs.accumulates:
        return partition, 2 * partition  # all_grad_tensors: the sum so far, and what is added
    return 0, partition


def _communication(inputs: MemoryInputs, partition: int, *, late: bool) -> list[Term]:
    # setup_buckets: as large as asked for, whatever the model is; two where reductions overlap
    buckets = inputs.bucket * inputs.element * (2 if inputs.overlaps else 1)
    # a bucket, or a parameter too large for one, is flattened to be reduced; at the end each
    # gradient is let go as its part is kept
    reduced = gradients_on_their_way(inputs)
    return [
        term("buckets", buckets, BACKWARD - {Moment.LOSS}, f"{_SOURCE}, setup_buckets"),
        term(
            "the head's gradient", 0 if late else head_copies(inputs), {Moment.LAST_LAYER},
            f"{_SOURCE}, extra_large_param_to_reduce", "gradients",
        ),
        term(
            "gradients on their way", max(0, reduced - partition) if late else reduced,
            {Moment.GRADIENTS}, f"{_SOURCE}, average_tensor", "gradients",
        ),
    ]  # fmt: skip


def _update(inputs: MemoryInputs, states: States) -> list[Term]:
    """Terms of the optimizer's step, and of making the engine with it."""
    e, share = inputs.element, inputs.share
    flattened = states.parameters + e * inputs.trained
    if inputs.offload != "none":
        step, beside = 0, _temporary(inputs)
    else:
        # averaged gradients, flattened, and in fp32; later those in fp32 and the update's own
        step = max(
            2 * e * share + FP32 * share * inputs.half,
            FP32 * share + update_scratch(inputs, share),
        )
        beside = 2 * FP32 * share
    init = max(flattened, states.parameters + beside)
    return [
        term("the update", step, {Moment.STEP}, f"{_SOURCE}, step"),
        term("making the engine", init, {Moment.INIT}, _SOURCE),
    ]


def _temporary(inputs: MemoryInputs) -> int:
    return inputs.largest_trained * inputs.element


def _offloaded(inputs: MemoryInputs, states: States) -> list[Term]:
    """Terms of an optimizer on the host: master copy, gradients, parameters on their way."""
    if inputs.offload == "none":
        return []
    temporary = _temporary(inputs)
    terms = [
        term("an offloaded gradient", temporary, RUN, "temp_grad_buffer_for_gpu_offload"),
        on_host(inputs, "offloaded optimizer state", states.host_optimizer, _SOURCE),
        on_host(inputs, "a gradient on its way", temporary, _SOURCE),
    ]
    if inputs.accumulates or inputs.selected:  # ZenFlow sums until it updates the other columns
        summed = inputs.element * inputs.share
        terms.append(on_host(inputs, "accumulated gradients", summed, "accumulated_grads_in_cpu"))
    return terms


def _selected(inputs: MemoryInputs) -> list[Term]:
    """Terms of the columns that ZenFlow updates at once, on every rank.

    Both moments are in the compute format; the gradient and the values before the update stay until
    it is done, on a copy of the columns.
    """
    if not inputs.selected:
        return []
    whole, largest = inputs.element * inputs.selected, inputs.element * inputs.selected_largest
    return [
        term("moments of selected columns", 2 * whole, RUN, _ZENFLOW, "optimizer"),
        term("selected columns", 2 * whole, {Moment.GRADIENTS, Moment.STEP}, _ZENFLOW, "gradients"),
        term("their update", whole + 2 * largest, {Moment.STEP}, _ZENFLOW),
    ]
