"""Time of one optimizer step: compute, communication, offload, optimizer; and which one bounds it.

Loading data is no part of it: background workers do that beside the computation, hundreds of times
faster than a small model takes (docs/benchmarks.md).

Numbers in, seconds out. Where the device's speed isn't known (a CPU that nobody measured) there is
no prediction, rather than a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dslm.cluster.hosts import Cluster
from dslm.cluster.speed import Link, Speed, sent
from dslm.plan.away import away_bytes
from dslm.plan.buckets import bucket_elements
from dslm.plan.experts import experts_of_a_token, held
from dslm.plan.generation import generation_seconds
from dslm.plan.optimizers import updating
from dslm.plan.roofline import passes
from dslm.plan.strategy import Strategy
from dslm.profile.levels import ById, flops
from dslm.profile.value import Profile
from dslm.recipe.features import quantizes_gradients, quantizes_weights
from dslm.recipe.preferences import passes_beside, sequences
from dslm.recipe.schema import Recipe

# Share of the time of a collective that computation beside it doesn't hide: it takes
# multiprocessors and memory bandwidth. Fitted by benchmarks/planner_published.py.
EXPOSED = 0.367
PCIE_BANDWIDTH = 25e9  # PCIe 4.0 x16, pinned copies, bytes/s


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one optimizer step, by part, and what follows from them."""

    step_seconds: float
    compute_seconds: float
    communication_seconds: float  # on the wire, hidden or not
    exposed_seconds: float  # of that, what computation doesn't hide
    offload_seconds: float
    optimizer_seconds: float
    tokens_per_second: float
    mfu: float | None  # None: the peak isn't known
    bound_by: str
    error: float  # by how much a step may well take more or less
    source: str  # of the speeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """What ZeRO sends in a step, and what can hide it."""

    name: str
    size: float  # bytes of the whole tensors
    times: int  # in a step
    beside: str  # forward, backward, or nothing
    inside: bool = False  # within a host only


def flops_per_token(profile: Profile, length: int, mode: str = "plain") -> float:
    """FLOPs of forward and backward for one token of a sequence of `length` tokens.

    As the trace counted them: matrix products and attention, recomputed ones in that mode, those
    of frozen weights' gradients not. Attention without a mask computes every score.
    """
    tokens = profile.fixed_length or length
    return sum(flops(profile.pass_of(mode, 2), 2, tokens).values()) / (2 * tokens)


def collectives(
    *,
    whole: float,
    trained: float,
    stage: int,
    accumulation: int,
    hosts: int = 1,
    second: bool = False,
    quantized: tuple[bool, bool] = (False, False),
    overlaps: bool = True,
) -> list[Collective]:
    """Return what ZeRO sends in a step, for `whole` bytes of parameters, of which some are trained.

    Source: ZeRO (arXiv 1910.02054), section 7: 2Ψ for stages 0 to 2, 3Ψ for stage 3; ZeRO++
    (arXiv 2306.10209), table 1: 0.75Ψ between hosts, where the backward pass gathers within one
    (`second`), and parameters and gradients (`quantized`) are sent in fewer bits.
    Stage 1 reduces in the last micro batch only; DeepSpeed's stage 0 after it (engine.py,
    allreduce_gradients), and what stages 1 and 2 gather is the updated parameters.
    """
    if stage == 0:
        return [Collective(name="all_reduce", size=trained, times=1, beside="")]
    backward = "backward" if overlaps else ""
    if stage < 3:
        times = accumulation if stage == 2 else 1
        return [
            Collective(name="reduce_scatter", size=trained, times=times, beside=backward),
            Collective(name="all_gather", size=trained, times=1, beside=""),
        ]
    forward = "forward" if overlaps else ""
    weights, gradients = quantized
    return [
        Collective(
            name="all_gather", size=whole * (0.5 if weights else 1), times=accumulation,
            beside=forward,
        ),
        Collective(
            name="all_gather", size=whole, times=accumulation, beside=backward,
            inside=second and hosts > 1,
        ),
        Collective(
            name="reduce_scatter", size=trained * (0.25 if gradients else 1), times=accumulation,
            beside=backward,
        ),
    ]  # fmt: skip


def predict(
    recipe: Recipe, profile: Profile, strategy: Strategy, cluster: Cluster
) -> StepTime | None:
    """Estimate the time of a step; None where the device's speed in this precision isn't known."""
    device = cluster.device
    speed = device.speed(recipe.precision)
    if speed is None:
        return None
    on_cpu = device.kind == "cpu"
    if on_cpu:
        speed = _shared(speed, cluster.slots_per_host)
    length = profile.fixed_length or recipe.data.sequence_length
    forward, backward = _computing(recipe, profile, strategy, speed, length, on_cpu=on_cpu)
    accumulation = strategy.gradient_accumulation_steps
    compute = accumulation * (forward + backward)
    if recipe.task == "grpo":
        compute += generation_seconds(recipe, profile, strategy, speed, on_cpu=on_cpu)
    wire, exposed = _sending(recipe, profile, strategy, cluster, (forward, backward))
    between = accumulation * _between_layers(recipe, profile, strategy, cluster, length)
    element = 4 if recipe.precision == "fp32" else 2
    fetched = _exposed(_fetching(profile, strategy, cluster, element), compute)
    fetched += accumulation * 2 * away_bytes(recipe, profile, strategy) / PCIE_BANDWIDTH
    optimizer = updating(recipe.optimizer.name, profile, strategy, cluster, speed)
    step = compute + exposed + between + fetched + optimizer
    parts = {
        "compute": compute, "communication": exposed + between, "offload": fetched,
        "optimizer": optimizer,
    }  # fmt: skip
    tokens = strategy.global_batch_size * length
    peak = device.peak_flops.get(recipe.precision)
    needed = flops_per_token(profile, length) * sequences(recipe)
    return StepTime(
        step_seconds=step,
        compute_seconds=compute,
        communication_seconds=wire + between,
        exposed_seconds=exposed + between,
        offload_seconds=fetched,
        optimizer_seconds=optimizer,
        tokens_per_second=tokens / step,
        mfu=tokens * needed / step / (cluster.world_size * peak) if peak else None,
        bound_by=max(parts, key=lambda part: parts[part]),
        error=device.error,
        source=device.measured or device.source,
    )


def _shared(speed: Speed, ranks: int) -> Speed:
    """The speed of one of several ranks that share a host's cores and memory."""
    return replace(
        speed,
        products=speed.products / ranks,
        product_bytes=speed.product_bytes / ranks,
        attention=speed.attention / ranks,
        memory=speed.memory / ranks,
    )


def _computing(
    recipe: Recipe, profile: Profile, strategy: Strategy, speed: Speed, length: int, *, on_cpu: bool
) -> tuple[float, float]:
    """Seconds of the forward and the backward pass of one micro batch."""
    mode = "recompute" if strategy.activation_checkpointing else "plain"
    samples = strategy.micro_batch_size * sequences(recipe)
    sizes = {"tensor": strategy.tensor_parallel, "sequence": strategy.sequence_parallel}
    key = ById(profile)
    forward, backward = (
        one.seconds(speed, on_cpu=on_cpu, **sizes) for one in passes(key, mode, samples, length)
    )
    more = passes_beside(recipe)
    if more:
        seen = passes(key, "evaluation", samples, length)[0]
        forward += more * seen.seconds(speed, on_cpu=on_cpu, **sizes)
    return forward, backward


def _sending(
    recipe: Recipe,
    profile: Profile,
    strategy: Strategy,
    cluster: Cluster,
    seconds: tuple[float, float],
) -> tuple[float, float]:
    """Seconds of a step's collectives of ZeRO: on the wire, and exposed."""
    ranks = strategy.data_parallel_size * strategy.sequence_parallel
    if ranks == 1:
        return 0.0, 0.0
    element = 4 if recipe.precision == "fp32" else 2
    hosts = len(cluster.hosts)
    slots = cluster.slots_per_host
    links = cluster.device.links(slots, hosts=hosts)
    near = cluster.device.links(slots, hosts=1)
    beside = dict(zip(("forward", "backward"), seconds, strict=True))
    bucket = bucket_elements(profile)
    wire = exposed = 0.0
    hidden: dict[str, float] = {}  # by pass, seconds of the wire beside it
    for one in collectives(
        whole=element * sum(held(g, strategy) for g in profile.parameters),
        trained=element * sum(held(g, strategy) for g in profile.parameters if g.trained),
        stage=strategy.zero_stage,
        accumulation=strategy.gradient_accumulation_steps,
        hosts=hosts,
        second=strategy.second_partition,
        quantized=(quantizes_weights(recipe), quantizes_gradients(recipe)),
        overlaps=cluster.device.kind != "cpu" and recipe.parallel.overlap is not False,
    ):
        group = min(ranks, slots) if one.inside else ranks
        link = (near if one.inside else links).get(one.name)
        if link is None:
            continue
        messages = max(profile.layers, one.size / element / bucket)
        each = link.seconds(sent(one.name, one.size, group), group, messages)
        wire += one.times * each
        if not one.beside:
            exposed += one.times * each
        elif one.times == 1:
            exposed += _exposed(each, beside[one.beside])
        else:
            hidden[one.beside] = hidden.get(one.beside, 0.0) + each
    accumulation = strategy.gradient_accumulation_steps
    exposed += sum(accumulation * _exposed(each, beside[name]) for name, each in hidden.items())
    return wire, exposed


def _exposed(seconds: float, compute: float) -> float:
    """Return the part of a transfer that computation doesn't hide."""
    return max(seconds * EXPOSED, seconds - compute * (1 - EXPOSED))


def _fetching(profile: Profile, strategy: Strategy, cluster: Cluster, element: int) -> float:
    """Seconds of a step in which what is offloaded comes and goes.

    Parameters come twice a micro batch, each rank its partition (ZeRO-Infinity, arXiv 2104.07857,
    section 4.1); gradients go down in every micro batch (stage_1_and_2.py,
    async_accumulate_grad_in_cpu_via_gpu).
    """
    if strategy.offload == "none" or cluster.device.kind == "cpu":
        return 0.0
    ranks = strategy.data_parallel_size * strategy.sequence_parallel
    accumulation = strategy.gradient_accumulation_steps
    moved = accumulation * element * profile.trained / ranks
    if strategy.offload in ("all", "nvme"):
        share = 2 * accumulation * element * profile.total / ranks
        moved += share
        if strategy.offload == "nvme":
            from_disk = share * cluster.slots_per_host / cluster.device.disk_bandwidth
            return moved / PCIE_BANDWIDTH + from_disk
    return moved / PCIE_BANDWIDTH


def _between_layers(
    recipe: Recipe, profile: Profile, strategy: Strategy, cluster: Cluster, length: int
) -> float:
    """Seconds of a micro batch in which ranks wait for each other's activations.

    Source: Megatron-LM (arXiv 1909.08053), section 3: four all-reduces of hidden states a layer;
    DeepSpeed Ulysses (arXiv 2309.14509), section 3.2: eight all-to-alls, each of a rank's share;
    GShard (arXiv 2006.16668), section 3.2: two all-to-alls around the experts of a layer.
    """
    element = 4 if recipe.precision == "fp32" else 2
    tensor, sequence = strategy.tensor_parallel, strategy.sequence_parallel
    states = strategy.micro_batch_size * length / sequence * profile.hidden_size * element
    links = cluster.device.links(cluster.slots_per_host, hosts=1)
    none = Link(0.0, float("inf"))
    reduced = links.get("all_reduce", none)
    traded = links.get("all_to_all", none)
    messages = 4 * profile.layers, 8 * profile.layers
    waiting = reduced.seconds(
        messages[0] * sent("all_reduce", states, tensor), tensor, messages[0]
    ) + traded.seconds(messages[1] * sent("all_to_all", states, sequence), sequence, messages[1])
    expert = strategy.expert_parallel
    if expert == 1:
        return waiting
    # there and back, forward and backward, and once more where the forward pass is made again
    times = 6 if strategy.activation_checkpointing else 4
    size = times * states * experts_of_a_token(profile, length)
    trips = times * profile.layers
    return waiting + traded.seconds(sent("all_to_all", size, expert), expert, trips)
