"""A plan as a JSON document, and tables of plans over stages and cluster sizes. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from dslm.cluster.devices import Device
from dslm.cluster.hosts import Cluster, Host
from dslm.codec import Json
from dslm.errors import RecipeError
from dslm.plan.ledger import Moment
from dslm.plan.memory import MARGIN
from dslm.plan.runnable import Permits, nothing_shared
from dslm.plan.search import Candidate, Plan, choose, smallest_world, traced
from dslm.plan.states import model_states
from dslm.plan.time import StepTime, flops_per_token
from dslm.profile.value import Profile
from dslm.recipe.duration import total_steps
from dslm.recipe.schema import Recipe
from dslm.units import number_of

SLOTS_PER_HOST = 8  # what a host has unless one says otherwise
_RUNNERS_UP = 5
_CHOICE = (
    "zero_stage", "offload", "micro_batch_size", "gradient_accumulation_steps",
    "activation_checkpointing", "tensor_parallel", "sequence_parallel", "expert_parallel",
    "second_partition", "data_parallel_size",
)  # fmt: skip


def cluster_of(device: Device, gpus: int, hosts: int | None = None) -> Cluster:
    """Return a cluster of devices spread evenly over its hosts; eight a host by default.

    Raises:
        RecipeError: they can't be spread evenly.
    """
    count = hosts if hosts is not None else max(1, -(-gpus // SLOTS_PER_HOST))
    if gpus % count:
        raise RecipeError(
            f"{number_of(gpus, 'GPU')} can't be spread evenly over {number_of(count, 'host')}",
            hint="`--gpus` is the total; say how many hosts with `--hosts`",
        )
    return Cluster(
        hosts=tuple(Host(f"host-{number}", gpus // count) for number in range(1, count + 1)),
        device=device,
    )


def document(
    plan: Plan,
    recipe: Recipe,
    cluster: Cluster,
    profile: Profile | None,
    why: str = "",
    permits: Permits = nothing_shared,
) -> dict[str, Json]:
    """Everything about a plan; what can't be known is null, and `why` says why it can't."""
    choice = plan.choice
    return {
        "model": {
            "parameters": profile.total if profile else None,
            "trained": profile.trained if profile else None,
            "exact": profile.exact if profile else None,
            "off": profile.off if profile and profile.passes else None,
            "attention": profile.attention if profile else None,
            "apart": dict(profile.apart) if profile else {},
            "untraced": why or None,
            "traced_with": dict(profile.versions) if profile else None,
            "flops_per_token": flops_per_token(profile, recipe.data.sequence_length)
            if traced(profile) and recipe.task != "vision"
            else None,
        },
        "cluster": {
            "device": cluster.device.name,
            "peak_flops": cluster.device.peak_flops.get(recipe.precision),
            "hosts": len(cluster.hosts),
            "world_size": cluster.world_size,
        },
        "choice": {name: getattr(choice.strategy, name) for name in _CHOICE},
        "memory": memory_document(choice),
        "fits": choice.fits if choice.memory else None,
        "time": time_document(choice.time, recipe, cluster),
        "runners_up": [
            {
                **{name: getattr(other.strategy, name) for name in _CHOICE},
                "why": why_lost(other, choice),
            }
            for other in plan.others[:_RUNNERS_UP]
        ],
        "smallest_world_size": smallest_world(recipe, cluster, profile, permits)
        if traced(profile)
        else None,
    }


def memory_document(choice: Candidate) -> dict[str, Json]:
    """Memory as `--json` has it."""
    memory = choice.memory
    found: dict[str, Json] = {
        "device": None,
        "host": {"total": None, "capacity": choice.host_capacity},
        "capacity": choice.capacity,
        "margin": MARGIN,
    }
    if memory is not None:
        items = {
            field.name: getattr(memory, field.name)
            for field in fields(memory)
            if field.name != "terms"
        }
        found["terms"] = [
            {
                "name": term.name,
                "kind": term.kind,
                "place": str(term.place),
                "bytes": term.bytes,
                "lives": [str(moment) for moment in Moment if moment in term.lives],
                "source": term.source,
            }
            for term in memory.terms
            if term.bytes
        ]
        host = {
            "total": items.pop("host"),
            **items.pop("host_items"),
            "capacity": choice.host_capacity,
            "fits": choice.fits_host,
        }
        items.pop("host_states")
        found["device"] = {**items, "total": memory.total, "peak_phase": memory.peak_phase}
        found["peak_moment"] = str(memory.peak_moment)
        found["host"] = host
    return found


def time_document(
    time: StepTime | None, recipe: Recipe, cluster: Cluster
) -> dict[str, Json] | None:
    """Time as `--json` has it, with that of the whole run where its length is known."""
    if time is None:
        return None
    steps = total_steps(recipe)
    seconds = steps * time.step_seconds if steps else None
    hours = seconds * cluster.world_size / 3600 if seconds else None
    price = recipe.cluster.price
    return {
        **asdict(time),
        "unit": "images" if recipe.task == "vision" else "tokens",
        "total_seconds": seconds,
        "gpu_hours": hours,
        "cost": hours * price if hours is not None and price is not None else None,
    }


def why_lost(other: Candidate, choice: Candidate) -> str:
    """Say in a few words why a candidate wasn't chosen."""
    if not other.fits_device and other.memory is not None:
        return f"does not fit: {other.memory.total / 2**30:.1f} GiB"
    if not other.fits_host and other.memory is not None:
        return f"the host's memory is too small: {other.memory.host / 2**30:.1f} GiB"
    if other.time and choice.time and other.time.step_seconds > 1.005 * choice.time.step_seconds:
        return f"slower: {other.time.step_seconds / choice.time.step_seconds:.2f}×"
    return "as fast, less simple"


def sweep(
    recipe: Recipe,
    device: Device,
    profile: Profile,
    worlds: Sequence[int],
    permits: Permits = nothing_shared,
) -> list[dict[str, float | None]]:
    """Peak memory and speed for each stage on clusters of several sizes."""
    rows = []
    for world in worlds:
        for stage in (0, 1, 2, 3):
            parallel = recipe.parallel.model_copy(update={"zero_stage": stage})
            changed = recipe.model_copy(update={"parallel": parallel})
            cluster = cluster_of(device, world)
            try:
                choice = choose(changed, cluster, profile, permits).choice
            except RecipeError:
                continue  # a global batch that this many ranks can't share
            rows.append(
                {
                    "gpus": world,
                    "zero_stage": stage,
                    "micro_batch_size": choice.strategy.micro_batch_size,
                    "activation_checkpointing": choice.strategy.activation_checkpointing,
                    "total": choice.memory.total if choice.memory else None,
                    "fits": choice.fits,
                    "tokens_per_second": choice.time.tokens_per_second if choice.time else None,
                }
            )
    return rows


def params_document(
    parameters: int, *, stage: int, gpus: int, device: Device | None
) -> dict[str, Any]:
    """Model states of mixed-precision Adam, as in table 1 of the ZeRO paper (arXiv 1910.02054).

    Without an architecture nothing is known of activations and speed: those are null.
    """
    # fp16: without ZeRO its gradients stay in half precision, as the paper has them
    states = model_states(parameters, precision="fp16", stage=stage, ranks=gpus)
    total = states.parameters + states.gradients + states.optimizer
    capacity = device.memory_bytes if device else None
    return {
        "model": {"parameters": parameters, "exact": True, "flops_per_token": None},
        "choice": dict.fromkeys(_CHOICE) | {"zero_stage": stage, "data_parallel_size": gpus},
        "memory": {
            "device": {
                "parameters": states.parameters,
                "gradients": states.gradients,
                "optimizer": states.optimizer,
                "activations": None,
                "logits": None,
                "buffers": None,
                "context": None,
                "phases": None,
                "total": total,
            },
            "host": {"total": None},
            "capacity": capacity,
        },
        "fits": total <= capacity * (1 - MARGIN) if capacity else None,
        "time": None,
        "note": "model states only: give a recipe or a config.json for activations and time",
    }
