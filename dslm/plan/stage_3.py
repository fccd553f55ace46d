"""What DeepSpeed keeps for a rank under ZeRO 3.

It follows zero/stage3.py and what is beside it in DeepSpeed 0.19.
"""

from __future__ import annotations

from dslm.plan.ledger import PASS, RUN, Moment, Place, Term
from dslm.plan.state_terms import (
    gradients_on_their_way,
    head_copies,
    on_host,
    resident_terms,
    term,
    update_scratch,
)
from dslm.plan.states import (
    FP32,
    GROUP_BUFFERS,
    SWAP_BUFFERS,
    MemoryInputs,
    RankMemory,
    States,
    states_of,
)
from dslm.plan.superoffload import superoffload_terms

_SOURCE = "zero/stage3.py"


def stage_3(inputs: MemoryInputs) -> RankMemory:
    """Return what a rank keeps where parameters are partitioned too."""
    states = states_of(inputs)
    secondary = _secondary(inputs)
    largest = inputs.largest_trained * inputs.element
    return RankMemory(
        parameters=states.parameters + secondary,
        gradients=states.gradients,
        optimizer=states.optimizer,
        terms=(
            *resident_terms(states, _SOURCE),
            term("second partition", secondary, RUN, "ZeRO++ (arXiv 2306.10209), 3.2",
                 "parameters"),
            term("gradients", states.gradients, RUN, f"{_SOURCE}, averaged", "gradients"),
            term("bucket", inputs.bucket * inputs.element, RUN, f"{_SOURCE}, ipg_buckets"),
            term("gathered parameters", inputs.element * _gathered(inputs),
                 PASS | {Moment.EVALUATION}, "partitioned_param_coordinator.py"),
            term("the head's gradient", head_copies(inputs), {Moment.LAST_LAYER}, _SOURCE,
                 "gradients"),
            term("gradients on their way", gradients_on_their_way(inputs) + largest,
                 {Moment.GRADIENTS}, f"{_SOURCE}, reduce_independent_p_g_buckets", "gradients"),
            *_update(inputs, states, largest, secondary),
            *_offloaded(inputs, states),
        ),
    )  # fmt: skip


def _whole(inputs: MemoryInputs) -> int:
    return inputs.trained + inputs.frozen


def _secondary(inputs: MemoryInputs) -> int:
    """Bytes of ZeRO++'s second partition, over the ranks of one host."""
    if not inputs.secondary:
        return 0
    return inputs.element * -(-_whole(inputs) // inputs.secondary)


def _gathered(inputs: MemoryInputs) -> int:
    """Parameters that are whole at a time.

    partitioned_param_coordinator.py: what is used again within the reuse distance stays gathered:
    on the way back everything is used again, so half the distance counts. What isn't is let go
    before the pass needs the most, by the second step at least.
    """
    whole = _whole(inputs) - inputs.passed
    if whole <= inputs.reuse // 2:
        return whole
    return min(whole, inputs.reuse // 2 + inputs.layer + inputs.largest)


def _group(inputs: MemoryInputs) -> int:
    """Elements that are updated at a time."""
    return min(inputs.share, inputs.sub_group)


def _update(inputs: MemoryInputs, states: States, largest: int, secondary: int) -> list[Term]:
    """Terms of the optimizer's step, and of making the engine with it."""
    e, share, group = inputs.element, inputs.share, _group(inputs)
    bucket = inputs.bucket * e
    if inputs.offload == "none":
        step = FP32 * group + update_scratch(inputs, group)
        init = max(2 * FP32 * share, (e + FP32) * share + bucket + largest)
    else:
        step, init = 0, bucket + largest
        if inputs.on_cpu:
            # initialize_optimizer_states: a gradient of the largest group, beside every group's own
            init = max(init, 3 * FP32 * share - states.host_optimizer)
    return [
        term("the update", step, {Moment.STEP}, f"{_SOURCE}, step"),
        term("making the engine", states.parameters + init + secondary, {Moment.INIT}, _SOURCE),
    ]


def _offloaded(inputs: MemoryInputs, states: States) -> list[Term]:
    """Terms of the host."""
    if inputs.apart:
        return superoffload_terms(inputs, states)
    states_there = states.host_parameters + states.host_optimizer
    terms = [on_host(inputs, "offloaded states", states_there, _SOURCE)]
    if inputs.offload == "nvme":
        # locked whole where they are made, whatever is read into them and written from them
        group = (FP32 * GROUP_BUFFERS + inputs.element) * _group(inputs)
        terms += [
            _locked("parameters as they are swapped", inputs.element * SWAP_BUFFERS,
                    "swap_tensor/partitioned_param_swapper.py, buffers"),
            _locked("a group as it is swapped", group,
                    "swap_tensor/utils.py, SwapBufferManager; reserve_partitioned_swap_space"),
        ]  # fmt: skip
    return terms


def _locked(name: str, bytes_: int, source: str) -> Term:
    return Term(name=name, bytes=bytes_, lives=RUN, source=source, place=Place.LOCKED)
