"""What SuperOffload keeps: a process beside each rank updates, while the backward pass goes on.

Source: runtime/superoffload of DeepSpeed 0.19. On the device a rank has what any offload of stage 3
has; master copies and gradients reach the other process through shared memory, and the moments are
made there.
"""

from __future__ import annotations

from dslm.plan.ledger import RUN, Place, Term
from dslm.plan.state_terms import on_host
from dslm.plan.states import FP32, MemoryInputs, States

APART = "process"  # the kind of what no tensor of the rank has
_STAGE_3 = "superoffload_stage3.py"
_WORKER = "superoffload_utils.py"
# A CUDA context with no library in it: 0.4 to 0.5 GiB as nvidia-smi shows it.
_CONTEXT_BYTES = 2**29
_PROCESS_BYTES = {True: 2**29, False: 2**31}  # its libraries, on a CPU or with CUDA's own


def superoffload_terms(inputs: MemoryInputs, states: States) -> list[Term]:
    """Return the terms of the host, and of the device that the other processes use."""
    share, group = inputs.share, FP32 * min(inputs.share, inputs.sub_group)
    own = states.host_parameters + inputs.element * share
    terms = [
        on_host(inputs, "offloaded gradients and parameters", own, _STAGE_3),
        _beside("master copies and gradients, in shared memory", 2 * FP32 * share,
                f"{_STAGE_3}, async_step", kind="optimizer", place=Place.SHARED),
        _beside("a group as it moves there", group, "torch.multiprocessing, share_memory_"),
        _beside("moments of the process that updates", int(inputs.state * share),
                "cpu_adam.py, step_subgroup"),
        _beside("gradients of the process that updates", group, f"{_WORKER}, grad_buffer",
                place=Place.PINNED if inputs.pinned else Place.PAGEABLE),
        _beside("the process that updates", _PROCESS_BYTES[inputs.on_cpu], _WORKER),
    ]  # fmt: skip
    if inputs.pinned:
        # pinned memory needs a context, and a process that chose no device has it on the first
        source = f"{_WORKER}, pin_empty: of all ranks of a host, on its first device"
        terms.append(
            Term(
                name="contexts of the processes that update", lives=RUN, source=source,
                bytes=inputs.apart * _CONTEXT_BYTES, kind="context",
            )
        )  # fmt: skip
    return terms


def _beside(
    name: str, bytes_: int, source: str, *, place: Place = Place.PAGEABLE, kind: str = APART
) -> Term:
    return Term(name=name, bytes=bytes_, lives=RUN, source=source, place=place, kind=kind)
