"""What DeepSpeed keeps for a rank and its host: parameters, gradients, optimizer state, buffers.

Plain numbers from sizes; nothing is known here of activations. It follows DeepSpeed 0.19's
runtime: engine.py, zero/stage_1_and_2.py, zero/stage3.py, fp16/fused_optimizer.py (an accelerator
without ZeRO) and fp16/unfused_optimizer.py (a CPU without ZeRO); each term names its place.

Legend: Ψ parameters, t the trained ones, N data-parallel ranks, e bytes of an element of the
compute format, B elements of a bucket, G elements of the largest parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
# Bytes of optimizer state per trained parameter beside the fp32 copy: two moments, or fewer.
# Adafactor keeps a row and a column for each matrix: less than a thousandth.
STATE_BYTES = {"adamw": 8, "adam": 8, "sgd": 0, "adafactor": 0, "lion": 4, "muon": 4}
SUB_GROUP = 10**9  # elements that stage 3 updates at a time: zero/config.py, sub_group_size
REUSE = 10**9  # stage3_max_reuse_distance and stage3_max_live_parameters, as the presets have them
SWAP_BUFFERS = 5 * 10**8  # elements: offload_param's buffer_count times buffer_size


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes of model states on a device and, offloaded, on the host; of one rank."""

    parameters: int
    gradients: int
    optimizer: int
    host_parameters: int = 0
    host_optimizer: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What decides how DeepSpeed lays out memory."""

    trained: int
    frozen: int
    largest: int  # elements of the largest parameter
    layer: int  # parameters of one layer
    embedding: int  # elements of the table of tokens
    tied: bool  # the head multiplies with that table
    element: int
    optimizer: str
    stage: int
    ranks: int
    offload: str
    accumulates: bool  # several micro batches make a step
    on_cpu: bool
    bucket: int  # elements
    overlaps: bool  # communication runs beside the backward pass
    reuse: int = REUSE
    sub_group: int = SUB_GROUP
    secondary: int = 0  # ranks of a host that hold ZeRO++'s second partition; 0: there is none
    pinned: bool = True

    @property
    def share(self) -> int:
        """Trained parameters whose optimizer state a rank holds."""
        return -(-self.trained // self.ranks) if self.stage else self.trained

    @property
    def half(self) -> bool:
        """Whether the compute format isn't fp32."""
        return self.element != FP32


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Bytes of one rank: what always lives, and the most beside it in each phase."""

    parameters: int
    gradients: int  # at the end of the backward pass
    optimizer: int
    buffers: int  # always there, or there through the backward pass
    resident: int  # on the device from the first step on, gradients left out
    init: int  # the most until the first step, all included
    carried: int  # gradients that live through a forward pass
    gathered: int  # parameters of others, between forward and backward
    arriving: int  # beside the activations, when the first gradients arrive
    first_layer: int  # gradients and buffers when those of the first layer arrive, the last ones
    backward_end: int  # gradients and buffers when the last gradient is there
    step: int
    host_pinned: int
    host_pageable: int

    @property
    def host(self) -> int:
        """Bytes on the host."""
        return self.host_pinned + self.host_pageable


def model_states(
    trained: int,
    *,
    frozen: int = 0,
    precision: str = "bf16",
    optimizer: str = "adamw",
    stage: int = 0,
    ranks: int = 1,
    offload: str = "none",
) -> States:
    """Parameters, gradients and optimizer state of one rank.

    Source: ZeRO (arXiv 1910.02054), section 3 and table 1, for mixed precision: 2Ψ + 2Ψ + KΨ with
    K = 12 for Adam; in fp32, DeepSpeed's stages keep a second copy of their partition.
    """
    element = FP32 if precision == "fp32" else 2
    all_ = trained + frozen
    share = -(-trained // ranks)  # every rank holds the same, rounded up
    parameters = element * (-(-all_ // ranks) if stage == 3 else all_)
    gradients = element * (share if stage >= 2 else trained)
    copies = 0 if stage == 0 and precision == "fp32" else FP32
    state = (STATE_BYTES[optimizer] + copies) * (share if stage >= 1 else trained)
    host_parameters = host_optimizer = 0
    if offload != "none":
        # the gradients that the host's step reads, in fp32, and what it sends or receives
        host_optimizer = state + (FP32 + element) * share
        state = 0
        if stage == 3:
            gradients = 0
    if offload in ("all", "nvme"):
        host_parameters, parameters = parameters, 0
    if offload == "nvme":
        host_parameters, host_optimizer = 0, element * share
    return States(
        parameters=parameters,
        gradients=gradients,
        optimizer=state,
        host_parameters=host_parameters,
        host_optimizer=host_optimizer,
    )


def held(setting: Setting) -> Held:
    """What DeepSpeed keeps of a model."""
    if setting.stage == 0:
        return _without_zero(setting)
    return _stage_3(setting) if setting.stage == 3 else _stages_1_and_2(setting)


def _states(setting: Setting) -> States:
    return model_states(
        setting.trained,
        frozen=setting.frozen,
        precision="bf16" if setting.half else "fp32",
        optimizer=setting.optimizer,
        stage=setting.stage,
        ranks=setting.ranks,
        offload=setting.offload,
    )


def _scratch(setting: Setting, elements: int) -> int:
    """What an update needs beside its state: fused kernels nothing, torch's Adam two tensors.

    Source: torch.optim.adam._single_tensor_adam, the root of the second moment and the denominator.
    """
    return 2 * FP32 * elements if setting.on_cpu and setting.optimizer in ("adam", "adamw") else 0


def _reduced(setting: Setting) -> int:
    """Gradients on their way: a bucket, or a parameter too large for one, and its flat copy.

    The gradient of a tied table waits for the second half, and is added to it.
    """
    largest = min(setting.largest, setting.trained)
    table = 3 * min(setting.embedding, setting.trained) if setting.tied else 0
    flat = 2 * largest if largest > setting.bucket else setting.bucket
    return setting.element * max(table, flat)


def _head_gradient(setting: Setting) -> int:
    """The gradient of the head while the last layer's come: of a tied one it waits for the end.

    Another is reduced as soon as the next gradient comes; a large one is copied for that.
    """
    head = min(setting.embedding, setting.trained) * setting.element
    if setting.tied or (setting.stage == 1 and not setting.overlaps):
        return head
    return 2 * head if setting.embedding > setting.bucket else 0


def _without_zero(setting: Setting) -> Held:
    states = _states(setting)
    trained, e = setting.trained, setting.element
    resident = states.parameters + states.optimizer
    scratch = _scratch(setting, setting.largest)
    head = min(setting.embedding, trained)
    if not setting.half:
        step, init = scratch, states.parameters + FP32 * setting.largest
    elif setting.on_cpu:
        # unfused_optimizer.py, step: a copy of each gradient in fp32; its initialisation steps once
        step = FP32 * trained + scratch
        init = resident + states.gradients + step
    else:
        # fused_optimizer.py, step: the copies, and all of them once more as one tensor
        step = 2 * FP32 * trained
        init = resident + FP32 * trained  # initialize_optimizer_states
    # engine.allreduce_gradients: gradients are copied into buckets of half a billion elements
    flat = e * min(trained, 5 * 10**8) if setting.ranks > 1 else 0
    return Held(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        buffers=0,
        resident=resident,
        init=init,
        carried=states.gradients if setting.accumulates else 0,
        gathered=0,
        arriving=e * head,
        first_layer=0 if setting.accumulates else e * max(0, trained - setting.layer),
        # a tied table gets two gradients, which are added; or all are copied to be reduced
        backward_end=(0 if setting.accumulates else states.gradients)
        + max(flat, 2 * e * head * setting.tied),
        step=step + states.gradients,
        host_pinned=0,
        host_pageable=0,
    )


def _stages_1_and_2(setting: Setting) -> Held:
    states = _states(setting)
    e, share, trained = setting.element, setting.share, setting.trained
    largest = min(setting.largest, trained)
    offloads = setting.offload != "none"
    # setup_buckets: as large as asked for, whatever the model is; two where reductions overlap
    buckets = setting.bucket * e * (2 if setting.overlaps else 1)
    # a bucket, or a parameter too large for one, is flattened to be reduced
    reduced = _reduced(setting)
    partition = 0 if offloads else e * share
    carried, gradients = 0, partition
    if setting.stage == 1 and (setting.accumulates or not setting.overlaps):
        gradients = e * trained + partition  # reduced only after the last backward pass
        carried = e * trained if setting.accumulates else 0
    elif setting.accumulates:
        carried = partition  # all_grad_tensors: the sum so far, and what is added to it
        gradients = 2 * partition
    late = setting.stage == 1 and not setting.overlaps  # all is reduced at the end
    arrived = partition
    if late:
        arrived = 0 if setting.accumulates else e * max(0, trained - setting.layer)
    # there each gradient is let go as its part is kept
    last = max(0, reduced - partition) if late else reduced
    temporary = largest * e if offloads else 0  # temp_grad_buffer_for_gpu_offload
    resident = states.parameters + states.optimizer + temporary
    flattened = states.parameters + e * trained
    if offloads:
        step = 0
        # master copy, gradients, parameters on their way, one gradient on its way
        on_host = states.host_optimizer + largest * e
        if setting.accumulates:
            on_host += e * share  # accumulated_grads_in_cpu
        init = max(flattened, states.parameters + temporary)
    else:
        on_host = 0
        # step: averaged gradients, flattened, in fp32, and those of the partition's parameters;
        # later those in fp32 and the update's own
        own = partition if carried and setting.stage == 1 else 0
        step = max(
            own + 2 * e * share + FP32 * share * setting.half,
            FP32 * share + _scratch(setting, share),
        )
        init = max(flattened, states.parameters + 2 * FP32 * share)
    pinned = on_host if setting.pinned else 0
    return Held(
        parameters=states.parameters,
        gradients=gradients,
        optimizer=states.optimizer,
        buffers=buckets + temporary,
        resident=resident,
        init=init,
        carried=carried,
        gathered=0,
        arriving=buckets + _head_gradient(setting),
        first_layer=buckets + arrived,
        backward_end=gradients - carried + buckets + last,
        step=step,
        host_pinned=pinned,
        host_pageable=on_host - pinned,
    )


def _stage_3(setting: Setting) -> Held:
    states = _states(setting)
    e, share = setting.element, setting.share
    whole = setting.trained + setting.frozen
    # partitioned_param_coordinator.py: what is used again within the reuse distance stays gathered:
    # on the way back everything is used again, so half the distance counts
    live = min(whole, setting.reuse // 2 + setting.layer + setting.largest)
    if whole <= setting.reuse // 2:
        live = whole
    gathered = e * live
    bucket = setting.bucket * e
    largest = min(setting.largest, setting.trained)
    reduced = _reduced(setting)
    secondary = e * -(-whole // setting.secondary) if setting.secondary else 0
    own = states.parameters + states.gradients + states.optimizer + secondary
    group = min(share, setting.sub_group)
    on_host = states.host_parameters + states.host_optimizer
    if setting.offload == "none":
        step = FP32 * group + _scratch(setting, group)
        init = max(
            states.parameters + 2 * FP32 * share,
            states.parameters + (e + FP32) * share + bucket + largest * e,
        )
    else:
        step = 0
        init = states.parameters + bucket + largest * e
        if setting.on_cpu:
            # initialize_optimizer_states: a gradient of the largest group, beside every group's own
            init = max(
                init, states.parameters + 3 * FP32 * share + states.host_parameters - on_host
            )
    if setting.offload == "nvme":
        # what is read and written at a time, in pinned buffers: two groups' master copies, moments
        # and gradients (pipelined_optimizer_swapper.py), and parameters on their way
        on_host += 2 * (2 * FP32 + STATE_BYTES[setting.optimizer]) * group
        on_host += e * min(SWAP_BUFFERS, whole)
    pinned = on_host if setting.pinned else 0
    return Held(
        parameters=states.parameters + secondary,
        gradients=states.gradients,
        optimizer=states.optimizer,
        buffers=bucket + gathered,
        resident=own + bucket,
        init=init + secondary,
        carried=0,
        gathered=gathered,
        arriving=_head_gradient(setting),
        first_layer=0,
        backward_end=reduced + largest * e,  # gathered still, and its gradient
        step=step,
        host_pinned=pinned,
        host_pageable=on_host - pinned,
    )
