"""Model states of a rank: parameters, gradients and optimizer state, and what decides them.

Plain numbers from sizes; nothing is known here of activations. What DeepSpeed's runtime adds to
them, stage by stage, stands in `stage_0`, `stages_1_2` and `stage_3`.

Legend: Ψ parameters, t the trained ones, N data-parallel ranks, e bytes of an element of the
compute format, B elements of a bucket, G elements of the largest parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dslm.plan.ledger import LAYERS, Place, Term, placed

FP32 = 4
# Bytes of optimizer state per trained parameter beside the fp32 copy: two moments, or fewer.
# Adafactor has rows and columns of a matrix: of what ZeRO makes flat it keeps every element.
STATE_BYTES = {"adamw": 8, "adam": 8, "sgd": 0, "adafactor": 4, "lion": 4, "muon": 4}
SUB_GROUP = 10**9  # elements that stage 3 updates at a time: zero/config.py, sub_group_size
REUSE = 10**9  # stage3_max_reuse_distance and stage3_max_live_parameters, as the presets have them
SWAP_BUFFERS = 5 * 10**8  # elements: offload_param's buffer_count times buffer_size
GROUP_BUFFERS = 4  # of the largest group, in fp32: offload_optimizer's buffer_count


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes of model states on a device and, offloaded, on the host; of one rank."""

    parameters: int
    gradients: int
    optimizer: int
    host_parameters: int = 0
    host_optimizer: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryInputs:
    """What decides how DeepSpeed lays out memory."""

    trained: int
    partitioned: int  # trained, those of all ranks that share experts: what ZeRO partitions
    frozen: int
    largest: int  # elements of the largest parameter
    largest_trained: int
    layer: int  # parameters of one layer
    head: int  # elements of the trained matrix that gives the logits; 0: it is frozen
    tied: bool  # it is the table of tokens, too
    passed: int  # parameters that the backward pass doesn't come back to
    element: int
    optimizer: str
    state: float  # bytes of the optimizer's own state of a trained parameter, on average
    scratch: int  # fp32 tensors that an update makes, each as large as what it updates
    stage: int
    ranks: int
    offload: str
    accumulates: bool  # several micro batches make a step
    on_cpu: bool
    bucket: int  # elements
    overlaps: bool  # communication runs beside the backward pass
    reuse: int = REUSE
    sub_group: int = SUB_GROUP
    ratio: float = 1.0  # of the optimizer's state that an offload moves
    secondary: int = 0  # ranks of a host that hold ZeRO++'s second partition; 0: there is none
    selected: int = 0  # elements that ZenFlow updates at once; 0: it is off
    selected_largest: int = 0  # of the parameter that has the most of them
    pinned: bool = True
    apart: int = 0  # ranks of a host beside each of which a process updates (SuperOffload)

    @property
    def share(self) -> int:
        """Trained parameters whose optimizer state a rank holds."""
        return -(-self.partitioned // self.ranks) if self.stage else self.trained

    @property
    def offloaded(self) -> float:
        """Share of a rank's optimizer state that an offload moves: a number of groups."""
        groups = max(1, -(-self.share // self.sub_group))
        return 1 - int((1 - self.ratio) * groups) / groups

    @property
    def half(self) -> bool:
        """Whether the compute format isn't fp32."""
        return self.element != FP32


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
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
        return placed(self.terms, Place.PINNED, Place.LOCKED)

    @property
    def pageable(self) -> int:
        """Other bytes on the host."""
        return placed(self.terms, Place.PAGEABLE, Place.SHARED)

    @property
    def host(self) -> int:
        """Bytes on the host."""
        return self.pinned + self.pageable


def model_states(
    trained: int,
    *,
    partitioned: int | None = None,
    frozen: int = 0,
    precision: str = "bf16",
    state_bytes: float = STATE_BYTES["adamw"],
    stage: int = 0,
    ranks: int = 1,
    offload: str = "none",
) -> States:
    """Parameters, gradients and optimizer state of one rank.

    Source: ZeRO (arXiv 1910.02054), section 3 and table 1, for mixed precision: 2Ψ + 2Ψ + KΨ with
    K = 12 for Adam; in fp32, DeepSpeed's stages keep a second copy of their partition.
    """
    element = FP32 if precision == "fp32" else 2
    shared = trained if partitioned is None else partitioned
    share = -(-shared // ranks)  # every rank holds the same, rounded up
    parameters = element * (-(-(shared + frozen) // ranks) if stage == 3 else trained + frozen)
    gradients = element * (share if stage >= 2 else trained)
    copies = 0 if stage == 0 and precision == "fp32" else FP32
    state = int((state_bytes + copies) * (share if stage >= 1 else trained))
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


def states_of(inputs: MemoryInputs) -> States:
    """Return the model states of a rank; what Twin-Flow leaves on the device is there."""
    found = model_states(
        inputs.trained,
        partitioned=inputs.partitioned,
        frozen=inputs.frozen,
        precision="bf16" if inputs.half else "fp32",
        state_bytes=inputs.state,
        stage=inputs.stage,
        ranks=inputs.ranks,
        offload=inputs.offload,
    )
    if inputs.offload == "none":
        return found
    stays = int((1 - inputs.offloaded) * (inputs.state + 2 * FP32) * inputs.share)
    return replace(
        found, optimizer=found.optimizer + stays, host_optimizer=found.host_optimizer - stays
    )
