"""Time of one optimizer step: compute, communication, offload, optimizer; and which one bounds it.

Loading data is no part of it: background workers do that beside the computation, hundreds of times
faster than a small model takes (docs/benchmarks.md).

Numbers in, seconds out. Where the device's speed isn't known (a CPU that nobody measured) there is
no prediction, rather than a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

from dslm.cluster.hosts import Cluster
from dslm.plan.strategy import Strategy
from dslm.profile.levels import flops
from dslm.profile.value import Profile
from dslm.recipe.schema import Recipe

# Share of a link's rated bandwidth that ring collectives reach (nccl-tests, bus bandwidth).
LINK_EFFICIENCY = 0.75
# Share of communication that ZeRO hides behind the backward pass when buckets are in flight.
OVERLAP = 0.7
PCIE_BANDWIDTH = 25e9  # PCIe 4.0 x16, pinned copies, bytes/s
HOST_ADAM_RATE = 1.2e9  # parameters/s of DeepSpeed's CPU Adam on a server, DeepSpeed blog 2020
NVME_BANDWIDTH = 5e9


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one optimizer step, by part, and what follows from them."""

    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    optimizer_seconds: float
    tokens_per_second: float
    mfu: float
    bound_by: str


def flops_per_token(profile: Profile, length: int, mode: str = "plain") -> float:
    """FLOPs of forward and backward for one token of a sequence of `length` tokens.

    As the trace counted them: matrix products and attention, recomputed ones in that mode, those
    of frozen weights' gradients not. Attention without a mask computes every score.
    """
    tokens = profile.fixed_length or length
    return sum(flops(profile.pass_of(mode, 2), 2, tokens).values()) / (2 * tokens)


def communication_volume(
    parameters: int, *, stage: int, element: int, ranks: int, zeropp: bool = False
) -> float:
    """Return bytes that one rank sends for one step (one accumulation step at stage 3).

    Source: ZeRO (arXiv 1910.02054), section 7: 2Ψ for stages 0 to 2, 3Ψ for stage 3; ZeRO++
    (arXiv 2306.10209), table 1: 0.75Ψ between hosts.
    """
    if ranks == 1:
        return 0.0
    factor = (0.75 if zeropp else 3.0) if stage == 3 else 2.0
    return factor * parameters * element * (ranks - 1) / ranks


def predict(
    recipe: Recipe, profile: Profile, strategy: Strategy, cluster: Cluster
) -> StepTime | None:
    """Estimate the time of a step; None where the device's speed in this precision isn't known."""
    device = cluster.device
    peak = device.peak_flops.get(recipe.precision)
    if not peak or recipe.task == "vision" or not device.memory_bandwidth:
        return None
    length = recipe.data.sequence_length
    tokens = strategy.global_batch_size * length
    needed = flops_per_token(profile, length)
    mode = "recompute" if strategy.activation_checkpointing else "plain"
    done = flops_per_token(profile, length, mode)
    compute = tokens * done / (cluster.world_size * peak * device.efficiency)
    element = 4 if recipe.precision == "fp32" else 2
    trained, whole = profile.trained, profile.trained + profile.frozen
    volume = communication_volume(
        whole if strategy.zero_stage == 3 else trained,
        stage=strategy.zero_stage,
        element=element,
        ranks=strategy.data_parallel_size,
        zeropp=recipe.parallel.zeropp,
    )
    # stage 3 gathers parameters in every accumulation step, stage 2 reduces in every one
    repeats = strategy.gradient_accumulation_steps if strategy.zero_stage >= 2 else 1
    bandwidth = device.link_bandwidth
    if len(cluster.hosts) > 1:
        # a ring enters each host once, and all its network cards carry it together: the bus
        # bandwidth of nccl-tests on hosts with a card for each device comes near their sum
        bandwidth = min(bandwidth, device.network_bandwidth * cluster.slots_per_host)
    wire = volume * repeats / (bandwidth * LINK_EFFICIENCY) if volume else 0.0
    exposed = _exposed(wire, compute) + _between_layers(
        recipe, profile, strategy, device.link_bandwidth
    )
    fetched = _exposed(_fetching(whole * element, strategy, cluster), compute)
    optimizer = _optimizer_seconds(trained, strategy, device.memory_bandwidth, cluster)
    step = compute + exposed + fetched + optimizer
    parts = {
        "compute": compute, "communication": exposed, "offload": fetched, "optimizer": optimizer
    }  # fmt: skip
    return StepTime(
        step_seconds=step,
        compute_seconds=compute,
        communication_seconds=wire,
        optimizer_seconds=optimizer,
        tokens_per_second=tokens / step,
        mfu=tokens * needed / step / (cluster.world_size * peak),
        bound_by=max(parts, key=lambda part: parts[part]),
    )


def _exposed(seconds: float, compute: float) -> float:
    """Return the part of a transfer that computation doesn't hide."""
    return max(seconds * (1 - OVERLAP), seconds - compute * OVERLAP)


def _fetching(parameters: int, strategy: Strategy, cluster: Cluster) -> float:
    """Seconds of a step in which offloaded parameters (bytes) come to the devices.

    Each rank brings its partition twice a micro batch, for the forward and the backward pass.
    Source: ZeRO-Infinity (arXiv 2104.07857), section 4.1.
    """
    if strategy.offload not in ("all", "nvme"):
        return 0.0
    share = 2 * strategy.gradient_accumulation_steps * parameters / strategy.data_parallel_size
    seconds = share / PCIE_BANDWIDTH
    if strategy.offload == "nvme":
        seconds += share * cluster.slots_per_host / NVME_BANDWIDTH
    return seconds


def _between_layers(
    recipe: Recipe, profile: Profile, strategy: Strategy, bandwidth: float
) -> float:
    """Seconds of a step that ranks wait for each other's activations.

    Source: Megatron-LM (arXiv 1909.08053), section 3: four all-reduces of hidden states a layer;
    DeepSpeed Ulysses (arXiv 2309.14509), section 3.2: eight all-to-alls, each of a rank's share.
    """
    element = 4 if recipe.precision == "fp32" else 2
    tensor, sequence = strategy.tensor_parallel, strategy.sequence_parallel
    tokens = strategy.micro_batch_size * recipe.data.sequence_length / sequence
    states = tokens * profile.hidden_size * element
    layers = profile.layers * strategy.gradient_accumulation_steps
    volume = 4 * 2 * (tensor - 1) / tensor + 8 * (sequence - 1) / sequence
    return layers * volume * states / (bandwidth * LINK_EFFICIENCY) if volume else 0.0


def _optimizer_seconds(
    trained: int, strategy: Strategy, memory_bandwidth: float, cluster: Cluster
) -> float:
    share = trained / (strategy.data_parallel_size if strategy.zero_stage else 1)
    if strategy.offload == "none":
        # reads and writes parameter, two moments, gradient, in fp32, and the half precision copy
        return share * 30 / memory_bandwidth
    per_host = share * cluster.slots_per_host
    traffic = share * 4 / PCIE_BANDWIDTH  # gradients down, parameters up, two bytes each
    seconds = traffic + per_host / HOST_ADAM_RATE
    if strategy.offload == "nvme":
        seconds += per_host * 24 / NVME_BANDWIDTH  # moments and master copy, read and written
    return seconds
