"""What DeepSpeed keeps for a rank without ZeRO.

It follows engine.py, fp16/fused_optimizer.py (an accelerator) and fp16/unfused_optimizer.py (a
CPU) of DeepSpeed 0.19.
"""

from __future__ import annotations

from dslm.plan.ledger import PASS, Moment
from dslm.plan.state_terms import resident_terms, term, update_scratch
from dslm.plan.states import FP32, MemoryInputs, RankMemory, states_of


def without_zero(inputs: MemoryInputs) -> RankMemory:
    """Return what a rank keeps where every rank has the whole model state."""
    states = states_of(inputs)
    trained, e = inputs.trained, inputs.element
    scratch = update_scratch(inputs, inputs.largest_trained)
    table = e * inputs.head if inputs.tied else 0
    resident = states.parameters + states.optimizer
    source = "fp16/unfused_optimizer.py" if inputs.on_cpu else "fp16/fused_optimizer.py"
    if not inputs.half:
        source = "torch's optimizer"
        step, init = scratch, states.parameters + FP32 * inputs.largest
    elif inputs.on_cpu:
        # step: a copy of each gradient in fp32; initialize_optimizer_states steps once
        step = FP32 * trained + scratch
        init = resident + states.gradients + step
    else:
        # step: the copies, and all of them once more as one tensor
        step = 2 * FP32 * trained
        init = resident + FP32 * trained  # initialize_optimizer_states
    # engine.allreduce_gradients: gradients are copied into buckets of half a billion elements
    flat = e * min(trained, 5 * 10**8) if inputs.ranks > 1 else 0
    carried = PASS if inputs.accumulates else frozenset[Moment]()
    return RankMemory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        stay=not inputs.accumulates,
        terms=(
            *resident_terms(states, source),
            term(
                "gradients", states.gradients, {Moment.GRADIENTS, Moment.STEP, *carried},
                "autograd", "gradients",
            ),
            term(
                "gradients on their way", max(flat, 2 * table), {Moment.GRADIENTS},
                "engine.py, allreduce_gradients; a tied table's two, and their sum", "gradients",
            ),
            term("the update", step, {Moment.STEP}, f"{source}, step"),
            term("making the engine", init, {Moment.INIT}, source),
        ),
    )  # fmt: skip
