"""How long sequences may be: with what `model.long_context` switches on, without, and without each.

Each is planned anew, with the profile of a model that is computed so.
"""

from __future__ import annotations

from collections.abc import Mapping

from dslm.ask.profile import OnPhase, profile_request, profiles
from dslm.codec import Json
from dslm.decide.job import Job
from dslm.decide.model import model_of
from dslm.plan.limits import longest
from dslm.plan.search import traced
from dslm.recipe.long_context import PARTS, leave_out, switch_on
from dslm.recipe.schema import Recipe

# what else `model.long_context` switches on, and its value without
_OTHERS: Mapping[str, object] = {
    "model.activation_checkpointing": False, "parallel.sequence": 1,
}  # fmt: skip


def reach_document(job: Job, on_phase: OnPhase) -> dict[str, Json]:
    """Return tokens `with_all`, `with_nothing`, by key `without` it; and what is `left_out`, why.

    Tokens are null where not even the shortest sequence fits; `positions` are all that there are.
    """
    on_cpu = job.cluster.device.kind == "cpu"
    asked = job.asked.recipe
    everything, left = switch_on(_with(asked, {}), on_cpu=on_cpu)
    keys = [part.key for part in PARTS if part.key not in left] + list(_OTHERS)
    nothing = {**dict.fromkeys((part.key for part in PARTS), False), **_OTHERS}
    ways = {"": everything}
    for key in keys:
        ways[key], _ = switch_on(_with(asked, {key: _OTHERS.get(key, False)}), on_cpu=on_cpu)
    ways["nothing"] = _without_any(asked, nothing)
    found, impossible = _longest(job, ways, on_phase)
    left |= impossible
    return {
        "with_all": found.pop(""),
        "with_nothing": found.pop("nothing"),
        "without": {key: tokens for key, tokens in found.items() if key not in left},
        "left_out": dict(left),
        "positions": job.profile.max_positions if job.profile else None,
    }


def _with(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """Switch everything on that a recipe doesn't refuse by name, and set some of it."""
    model = {"long_context": True}
    sequence = {"sequence": "auto"} if recipe.parallel.sequence == 1 else {}
    return _set(_set(recipe, "model", model), "parallel", sequence, values)


def _without_any(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    return _set(_set(recipe, "model", {"long_context": False}), "parallel", {}, values)


def _set(
    recipe: Recipe,
    section: str,
    own: Mapping[str, object],
    more: Mapping[str, object] | None = None,
) -> Recipe:
    changed = recipe.model_copy(
        update={section: getattr(recipe, section).model_copy(update=dict(own))}
    )
    for key, value in (more or {}).items():
        name, _, last = key.partition(".")
        changed = _set(changed, name, {last: value})
    return changed


def _longest(
    job: Job, ways: Mapping[str, Recipe], on_phase: OnPhase
) -> tuple[dict[str, int | None], Mapping[str, str]]:
    """The longest sequence of each way, and by key what the model can't be computed with."""
    cluster, source = job.cluster, model_of(job.asked)
    on_cpu = cluster.device.kind == "cpu"
    requests = {
        name: profile_request(recipe, dict(source.architecture), on_cpu=on_cpu)
        for name, recipe in ways.items()
    }
    seen = dict(zip(requests, profiles(list(requests.values()), on_phase), strict=True))
    impossible = seen[""].left_out
    found: dict[str, int | None] = {}
    for name, recipe in ways.items():
        if name in impossible or not traced(seen[name]):
            found[name] = None
            continue
        possible = leave_out(recipe, job.asked.recipe, seen[name].left_out)
        limit = longest(possible, cluster, seen[name], job.permits)
        found[name] = limit[0] if limit else None
    return found, impossible
