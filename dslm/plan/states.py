"""What DeepSpeed keeps for a rank and its host: parameters, gradients, optimizer state, buffers.

Plain numbers from sizes; nothing is known here of activations. It follows DeepSpeed 0.19's
runtime: engine.py, zero/stage_1_and_2.py, zero/stage3.py, fp16/fused_optimizer.py (an accelerator
without ZeRO) and fp16/unfused_optimizer.py (a CPU without ZeRO); each term names its place.

Legend: Ψ parameters, t the trained ones, N data-parallel ranks, e bytes of an element of the
compute format, B elements of a bucket, G elements of the largest parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dslm.plan.ledger import (
    BACKWARD,
    LAYERS,
    PASS,
    RUN,
    Moment,
    Place,
    Term,
    placed,
)

FP32 = 4
_ZERO_12, _ZERO_3 = "zero/stage_1_and_2.py", "zero/stage3.py"
# Bytes of optimizer state per trained parameter beside the fp32 copy: two moments, or fewer.
# Adafactor has rows and columns of a matrix: of what ZeRO makes flat it keeps every element.
STATE_BYTES = {"adamw": 8, "adam": 8, "sgd": 0, "adafactor": 4, "lion": 4, "muon": 4}
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
    state: float  # bytes of the optimizer's own state of a trained parameter, on average
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
    """What DeepSpeed keeps of a model: terms, and how gradients live beside the activations."""

    parameters: int
    gradients: int  # at the end of the backward pass
    optimizer: int
    terms: tuple[Term, ...]
    stay: bool = False  # gradients stay where they are until the backward pass is over
    arrived: int = 0  # bytes of gradients kept of a whole backward pass; grows as they come

    @property
    def buffers(self) -> int:
        """Always there, or there through the backward pass."""
        return sum(
            t.bytes for t in self.terms if t.kind == "buffers" and t.lives >= LAYERS
            and t.place is Place.DEVICE
        )  # fmt: skip

    @property
    def pinned(self) -> int:
        """Bytes on the host that a device copies from."""
        return placed(self.terms, Place.PINNED)

    @property
    def pageable(self) -> int:
        """Other bytes on the host."""
        return placed(self.terms, Place.PAGEABLE)

    @property
    def host(self) -> int:
        """Bytes on the host."""
        return self.pinned + self.pageable


def model_states(
    trained: int,
    *,
    frozen: int = 0,
    precision: str = "bf16",
    optimizer: str = "adamw",
    state_bytes: float | None = None,
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
    own = STATE_BYTES[optimizer] if state_bytes is None else state_bytes
    state = int((own + copies) * (share if stage >= 1 else trained))
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


def _term(  # a term of the device
    name: str, bytes_: int, lives: Iterable[Moment], source: str, kind: str = "buffers"
) -> Term:
    return Term(name=name, bytes=bytes_, lives=frozenset(lives), source=source, kind=kind)


def _on_host(setting: Setting, name: str, bytes_: int, source: str) -> Term:
    place = Place.PINNED if setting.pinned else Place.PAGEABLE
    return Term(name=name, bytes=bytes_, lives=RUN, source=source, place=place)


def _resident(states: States, source: str) -> list[Term]:
    return [
        _term("parameters", states.parameters, RUN, source, "parameters"),
        _term("optimizer state", states.optimizer, RUN, source, "optimizer"),
    ]


def _states(setting: Setting) -> States:
    return model_states(
        setting.trained,
        frozen=setting.frozen,
        precision="bf16" if setting.half else "fp32",
        optimizer=setting.optimizer,
        state_bytes=setting.state,
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


def _head_copies(setting: Setting) -> int:
    """The gradient of a head of its own, and its copy, where it is larger than a bucket.

    It is reduced as soon as the next gradient comes. That of a tied head waits within the backward
    pass, where the trace has it.
    """
    head = min(setting.embedding, setting.trained) * setting.element
    return 2 * head if setting.embedding > setting.bucket and not setting.tied else 0


def _without_zero(setting: Setting) -> Held:
    states = _states(setting)
    trained, e = setting.trained, setting.element
    scratch = _scratch(setting, setting.largest)
    table = e * min(setting.embedding, trained) if setting.tied else 0
    resident = states.parameters + states.optimizer
    source = "fp16/unfused_optimizer.py" if setting.on_cpu else "fp16/fused_optimizer.py"
    if not setting.half:
        source = "torch's optimizer"
        step, init = scratch, states.parameters + FP32 * setting.largest
    elif setting.on_cpu:
        # step: a copy of each gradient in fp32; initialize_optimizer_states steps once
        step = FP32 * trained + scratch
        init = resident + states.gradients + step
    else:
        # step: the copies, and all of them once more as one tensor
        step = 2 * FP32 * trained
        init = resident + FP32 * trained  # initialize_optimizer_states
    # engine.allreduce_gradients: gradients are copied into buckets of half a billion elements
    flat = e * min(trained, 5 * 10**8) if setting.ranks > 1 else 0
    carried = PASS if setting.accumulates else frozenset[Moment]()
    return Held(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        stay=not setting.accumulates,
        terms=(
            *_resident(states, source),
            _term(
                "gradients", states.gradients, {Moment.GRADIENTS, Moment.STEP, *carried},
                "autograd", "gradients",
            ),
            _term(
                "gradients on their way", max(flat, 2 * table), {Moment.GRADIENTS},
                "engine.py, allreduce_gradients; a tied table's two, and their sum", "gradients",
            ),
            _term("the update", step, {Moment.STEP}, f"{source}, step"),
            _term("making the engine", init, {Moment.INIT}, source),
        ),
    )  # fmt: skip


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
    # there each gradient is let go as its part is kept
    last = max(0, reduced - partition) if late else reduced
    temporary = largest * e if offloads else 0  # temp_grad_buffer_for_gpu_offload
    flattened = states.parameters + e * trained
    host: list[Term] = []
    if offloads:
        step = 0
        # master copy, gradients, parameters on their way
        host.append(_on_host(setting, "offloaded optimizer state", states.host_optimizer, _ZERO_12))
        host.append(_on_host(setting, "a gradient on its way", largest * e, _ZERO_12))
        if setting.accumulates:
            summed = _on_host(
                setting, "accumulated gradients", e * share, "accumulated_grads_in_cpu"
            )
            host.append(summed)
        init = max(flattened, states.parameters + temporary)
    else:
        # step: averaged gradients, flattened, in fp32, and those of the partition's parameters;
        # later those in fp32 and the update's own
        own = partition if carried and setting.stage == 1 else 0
        step = max(
            own + 2 * e * share + FP32 * share * setting.half,
            FP32 * share + _scratch(setting, share),
        )
        init = max(flattened, states.parameters + 2 * FP32 * share)
    summing = PASS | {Moment.GRADIENTS}
    return Held(
        parameters=states.parameters,
        gradients=gradients,
        optimizer=states.optimizer,
        stay=late and not setting.accumulates,
        arrived=0 if late else partition,
        terms=(
            *_resident(states, _ZERO_12),
            _term("buckets", buckets, BACKWARD - {Moment.LOSS}, f"{_ZERO_12}, setup_buckets"),
            _term("an offloaded gradient", temporary, RUN, "temp_grad_buffer_for_gpu_offload"),
            _term("gradients so far", carried, summing, "all_grad_tensors", "gradients"),
            _term(
                "gradients", gradients - carried, {Moment.GRADIENTS}, _ZERO_12, "gradients"
            ),
            _term(
                "the head's gradient", 0 if late else _head_copies(setting), {Moment.LAST_LAYER},
                f"{_ZERO_12}, extra_large_param_to_reduce", "gradients",
            ),
            _term(
                "gradients on their way", last, {Moment.GRADIENTS}, f"{_ZERO_12}, average_tensor",
                "gradients",
            ),
            _term("the update", step, {Moment.STEP}, f"{_ZERO_12}, step"),
            _term("making the engine", init, {Moment.INIT}, _ZERO_12),
            *host,
        ),
    )  # fmt: skip


def _stage_3(setting: Setting) -> Held:
    states = _states(setting)
    e, share = setting.element, setting.share
    whole = setting.trained + setting.frozen
    # partitioned_param_coordinator.py: what is used again within the reuse distance stays gathered:
    # on the way back everything is used again, so half the distance counts
    live = min(whole, setting.reuse // 2 + setting.layer + setting.largest)
    if whole <= setting.reuse // 2:
        live = whole
    bucket = setting.bucket * e
    largest = min(setting.largest, setting.trained)
    secondary = e * -(-whole // setting.secondary) if setting.secondary else 0
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
    host = [_on_host(setting, "offloaded states", on_host, _ZERO_3)]
    if setting.offload == "nvme":
        # what is read and written at a time, in pinned buffers: two groups' master copies, moments
        # and gradients (pipelined_optimizer_swapper.py), and parameters on their way
        swapped = int(2 * (2 * FP32 + setting.state) * group)
        swapped += e * min(SWAP_BUFFERS, whole)
        host.append(_on_host(setting, "what is swapped", swapped, "pipelined_optimizer_swapper.py"))
    gathered = PASS | {Moment.EVALUATION}
    return Held(
        parameters=states.parameters + secondary,
        gradients=states.gradients,
        optimizer=states.optimizer,
        terms=(
            *_resident(states, _ZERO_3),
            _term(
                "second partition", secondary, RUN, "ZeRO++ (arXiv 2306.10209), 3.2", "parameters"
            ),
            _term("gradients", states.gradients, RUN, f"{_ZERO_3}, averaged", "gradients"),
            _term("bucket", bucket, RUN, f"{_ZERO_3}, ipg_buckets"),
            _term("gathered parameters", e * live, gathered, "partitioned_param_coordinator.py"),
            _term(
                "the head's gradient", _head_copies(setting), {Moment.LAST_LAYER}, _ZERO_3,
                "gradients",
            ),
            _term(
                "gradients on their way", _reduced(setting) + largest * e, {Moment.GRADIENTS},
                f"{_ZERO_3}, reduce_independent_p_g_buckets", "gradients",
            ),
            _term("the update", step, {Moment.STEP}, f"{_ZERO_3}, step"),
            _term("making the engine", init + secondary, {Moment.INIT}, _ZERO_3),
            *host,
        ),
    )  # fmt: skip
