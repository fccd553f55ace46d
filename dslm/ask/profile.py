"""The profile of a recipe's model: shipped, from the cache, or traced by the worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from dslm.ask.call import ask
from dslm.errors import DslmError, RecipeError
from dslm.files import expanded
from dslm.profile.store import keep, key_of, stored
from dslm.profile.value import Profile, from_document
from dslm.recipe.packs import may_attend_by_lengths
from dslm.recipe.schema import PRINCIPAL, Lora, Recipe

OnPhase = Callable[[str], None]


def profile_request(
    recipe: Recipe, architecture: Mapping[str, object], *, on_cpu: bool
) -> dict[str, object]:
    """Build the request for a profile: everything in a recipe that changes the model's work."""
    return {
        "architecture": architecture,
        # what the loss is computed of is the same: tokens, each the next one's label
        "task": _TRACED_AS.get(recipe.task, recipe.task),
        "attention": _attention(recipe),
        "fused_loss": recipe.model.liger is True,
        "precision": "fp32" if recipe.autocast else recipe.precision,
        "lora": _shape(recipe.lora) if recipe.lora else None,
        "device": "cpu" if on_cpu else "accelerator",
        # of those that most recipes don't have, none where it is off: profiles are found by this
        **{name: True for name in _OPTIONAL if getattr(recipe.model, name) is True},
    }  # fmt: skip


_OPTIONAL = ("chunked_loss", "tiled_mlp", "tiled_loss", "offload_activations")
# the task whose head and loss a model is traced with, where it is another's
_TRACED_AS = {
    **dict.fromkeys(("sft", "dpo", "orpo", "kto", "grpo", "sequence", "script"), "pretrain"),
    "reward": "classify",
}
# whose samples say where documents begin: no mask is needed (dslm/worker/layout/attention.py)
_PACKED = ("pretrain", "sft", "sequence")


def _attention(recipe: Recipe) -> str:
    """The attention that the worker would use: `documents` where the model's code allows it."""
    asked = recipe.model.attention
    if recipe.task in _PACKED and may_attend_by_lengths(recipe):
        return "documents"
    return "auto" if asked == "sdpa" else asked


# What of adapters changes the model's work, and peft's name of it; what isn't given is left out.
_SHAPE = {
    "rank": "r", "dropout": "lora_dropout", "target_modules": "target_modules",
    "exclude": "exclude_modules", "modules_to_save": "modules_to_save",
    "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern", "dora": "use_dora",
}  # fmt: skip
_ALWAYS = ("rank", "dropout", "target_modules")


def _shape(lora: Lora) -> dict[str, object]:
    """The shape of adapters: the recipe's, or that of existing ones as their folder says."""
    found: dict[str, object] = {name: getattr(lora, name) for name in _SHAPE}
    if lora.adapter is not None:
        try:
            text = (expanded(lora.adapter) / "adapter_config.json").read_text(encoding="utf-8")
            said = json.loads(text)
            found |= {name: said[own] for name, own in _SHAPE.items() if own in said}
        except (OSError, ValueError, TypeError):
            pass  # a check says so
    elif lora.init in PRINCIPAL:  # which not every model can have
        found["init"] = lora.init
    return {name: value for name, value in found.items() if value or name in _ALWAYS}


def profile_of(
    recipe: Recipe,
    architecture: Mapping[str, object],
    *,
    on_cpu: bool,
    on_phase: OnPhase = lambda detail: None,
) -> tuple[Profile | None, str]:
    """Return the profile of a recipe's model; None, and why, where there is none.

    Raises:
        RecipeError: the recipe asks for something that the model doesn't have.
    """
    request = profile_request(recipe, architecture, on_cpu=on_cpu)
    try:
        found = profiles([request], on_phase)[0]
    except DslmError as failure:
        key = failure.where.key or ""
        if key.startswith("lora.") or key == "model.chunked_loss":  # ranks would fail of it too
            raise RecipeError(failure.message, where=failure.where, hint=failure.hint) from failure
        return None, failure.message
    return found, found.why


def profiles(requests: list[dict[str, object]], on_phase: OnPhase) -> list[Profile]:
    """Return the profiles of requests; what isn't known yet is traced by one process.

    Raises:
        DslmError: a model can't be built, or the process ended.
    """
    asked = {key_of(request): request for request in requests}
    found = {key: one for key, request in asked.items() if (one := stored(request)) is not None}
    absent = {key: request for key, request in asked.items() if key not in found}
    if absent:
        answer = ask("dslm.worker.trace", {"requests": list(absent.values())}, on_phase)
        for (key, request), document in zip(absent.items(), answer["profiles"], strict=True):
            found[key] = from_document(document)
            if not found[key].why:
                keep(request, found[key])
    return [found[key_of(request)] for request in requests]
