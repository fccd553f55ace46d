"""A job that doesn't fit, and the nearest changes that would make it fit.

Plans the same recipe again with a key changed; knows nothing of launching.
"""

from __future__ import annotations

from collections.abc import Sequence

from dslm.ask.profile import profile_of
from dslm.decide.job import Job
from dslm.decide.model import model_of
from dslm.errors import DoesNotFit, RecipeError
from dslm.plan.memory import MARGIN
from dslm.plan.search import Plan, choose, smallest_world
from dslm.recipe.schema import Lora, Recipe
from dslm.units import render_bytes


def check_fit(job: Job, *, can_force: bool = True) -> None:
    """Check that the plan fits.

    Args:
        job: what is planned.
        can_force: whether whoever asks has an option `--force`.

    Raises:
        DoesNotFit: it doesn't; says what would.
    """
    memory = job.plan.choice.memory
    if job.plan.fits or memory is None:
        return
    choice = job.plan.choice
    ways = ways_out(job)
    if others := [way for way in other_trainings(job) if way not in ways]:
        ways.append(f"or train something else: {', '.join(others)}")
    hint = "; ".join([*ways, *(["or continue anyway with `--force`"] if can_force else [])])
    if not choice.fits_device:
        ranks = job.cluster.world_size
        where = f"each of {ranks} ranks" if ranks > 1 else "one rank"
        raise DoesNotFit(
            f"this needs {render_bytes(memory.total)} on {where} (in {memory.peak_phase}), "
            f"but there are {render_bytes(choice.capacity)}",
            hint=hint,
        )
    raise DoesNotFit(
        f"this needs {render_bytes(memory.host)} of each host's memory, but there are "
        f"{render_bytes(choice.host_capacity or 0)}: the kernel would kill a rank (exit -9)",
        hint=hint,
    )


def ways_out(job: Job) -> list[str]:
    """Return the three nearest changes that would make a job fit; fewer where there aren't three.

    First what leaves the training as it is: how it is partitioned, one change or the shortest
    chain of them, and how many devices. Then what trains something else: shorter sequences, LoRA.
    """
    if job.profile is None:
        return []
    found = [_said([change]) for change in _CHANGES if _fits_with(job, [change])][:2]
    if not found:
        found = _shortest(job, ())
    world = smallest_world(job.recipe, job.cluster, job.profile, job.permits)
    if world is not None:
        found.append(f"{world} such devices")
    else:
        found += _more_devices(job)
    length = job.recipe.data.sequence_length
    shorter = [("data.sequence_length", length >> halved) for halved in (1, 2, 3)]
    for last in (*shorter, ("lora", Lora())):
        if len(found) >= _WAYS:
            break
        found += _shortest(job, (last,))
    memory = job.plan.choice.memory
    if len(found) < _WAYS and memory is not None and not job.plan.choice.fits_device:
        found.append(f"devices with {render_bytes(memory.total / (1 - MARGIN))} each")
    return found[:_WAYS]


def other_trainings(job: Job) -> list[str]:
    """Return changes that train something else and fit, each with what it needs on a device.

    Adapters, half precision, a shorter sequence: everything else is chosen anew for it.
    """
    recipe = job.recipe
    lengths = [("data.sequence_length", recipe.data.sequence_length >> n) for n in (1, 2, 3, 4)]
    changes: list[list[Change]] = []
    if recipe.lora is None and recipe.model.init == "pretrained" and recipe.task != "mlm":
        adapters: Change = ("lora", Lora())
        changes += [[adapters], [adapters, ("quantize", "nf4")], [adapters, lengths[1]]]
    if recipe.precision == "fp32" and job.cluster.device.supports("bf16"):
        changes.append([("precision", "bf16")])
    architecture = dict(model_of(job.asked).architecture)
    found = [way for chain in changes if (way := _other(job, chain, architecture))][:2]
    for length in lengths:
        if (plan := _plan_with(job, [length], free=True)) and plan.fits:
            found.append(_with_need([length], plan))
            break
    return found


def _other(job: Job, chain: Sequence[Change], architecture: dict[str, object]) -> str:
    """Changes after which the model must be traced anew, if they fit; else nothing."""
    if not architecture:
        return ""
    changed = _changed(job.asked.recipe, chain)
    profile, _ = profile_of(changed, architecture, on_cpu=job.cluster.device.kind == "cpu")
    try:
        plan = choose(changed, job.cluster, profile, job.permits)
    except RecipeError:
        return ""
    return _with_need(chain, plan) if plan.fits else ""


def _with_need(chain: Sequence[Change], plan: Plan) -> str:
    memory = plan.choice.memory
    need = f" ({render_bytes(memory.total)} on each device)" if memory else ""
    return f"{_said(chain)}{need}"


def _more_devices(job: Job) -> list[str]:
    """Advise a number of such devices that is enough with every saving of memory."""
    chain = _CHANGES[:3]
    changed = _changed(job.recipe, chain)
    if job.profile is None:
        return []
    world = smallest_world(changed, job.cluster, job.profile, job.permits)
    return [f"{world} such devices with {_said(chain)}"] if world is not None else []


def _shortest(job: Job, last: tuple[Change, ...]) -> list[str]:
    """The shortest chain of changes that fits, those of `last` included; none if none does."""
    for length in range(0 if last else 2, len(_CHANGES) + 1):
        chain = [*_CHANGES[:length], *last]
        if _fits_with(job, chain):
            return [_said(chain)]
    return []


# Changes that save memory, the cheapest in time first; (key, value).
Change = tuple[str, object]
_WAYS = 3
_CHANGES: tuple[Change, ...] = (
    ("batch.micro_size", 1),
    ("model.activation_checkpointing", True),
    ("parallel.zero_stage", 3),
    ("parallel.offload", "optimizer"),
    ("parallel.offload", "all"),
)


def _fits_with(job: Job, changes: Sequence[Change]) -> bool:
    plan = _plan_with(job, changes)
    return plan is not None and plan.fits


def _plan_with(job: Job, changes: Sequence[Change], *, free: bool = False) -> Plan | None:
    """The plan of a changed recipe, of the one that was asked for if `free`; None: there is none.

    There is none of a combination such as offload at stage 0, nor where nothing changes.
    """
    before = job.asked.recipe if free else job.recipe
    recipe = _changed(before, changes)
    try:
        if recipe == before:
            return None
        return choose(recipe, job.cluster, job.profile, job.permits)
    except RecipeError:
        return None


def _changed(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    for key, value in changes:
        section, _, name = key.partition(".")
        if name:
            changed = getattr(recipe, section).model_copy(update={name: value})
            recipe = recipe.model_copy(update={section: changed})
        else:
            recipe = recipe.model_copy(update={section: value})
    return recipe


def _said(changes: Sequence[Change]) -> str:
    """Changes as options to copy; of an offload only the last, which includes those before."""
    values = {
        key: "{}" if isinstance(value, Lora) else str(value).lower() for key, value in changes
    }
    return f"`{' '.join(f'--set {key}={value}' for key, value in values.items())}`"
