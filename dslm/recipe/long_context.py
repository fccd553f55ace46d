"""What `model.long_context` switches on, as far as it goes with the rest of a recipe.

A recipe in, one without `auto` in these keys out, with what was left out and why. What else tells
against a part is found by a trace of the model: `leave_out` takes that in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dslm.errors import RecipeError, Where
from dslm.recipe.features import FEATURES, Apart, Feature
from dslm.recipe.schema import Recipe

_KEYS = ("tiled_mlp", "tiled_loss", "offload_activations")
PARTS: tuple[Feature, ...] = tuple(
    feature for feature in FEATURES if feature.key.removeprefix("model.") in _KEYS
)


def _compiled(recipe: Recipe) -> bool:
    return recipe.model.compile or recipe.model.deepcompile


_TILES = "tiles of tokens are no part of a graph that is compiled"
_UNCOMPILED = "`--set model.compile=false` and `model.deepcompile=false`"
_LIGER = "Liger's kernels take the place of what is computed in tiles"
_NO_LIGER = "`--set model.liger=false`"
CLASHES = (
    Apart("model.tiled_mlp", _compiled, _TILES, _UNCOMPILED),
    Apart("model.tiled_loss", _compiled, _TILES, _UNCOMPILED),
    Apart("model.tiled_mlp", lambda r: r.model.liger is True, _LIGER, _NO_LIGER),
    Apart("model.tiled_loss", lambda r: r.model.liger is True, _LIGER, _NO_LIGER),
    Apart(
        "model.tiled_loss", lambda r: r.model.chunked_loss,
        "a loss in tiles never has the logits that are taken in chunks",
        "`--set model.chunked_loss=false`",
    ),
    Apart(
        "model.tiled_loss", lambda r: r.parallel.tensor != 1,
        "ranks that share layers share the head, and a loss in tiles is computed there",
        "`--set parallel.tensor=1`, or `model.chunked_loss: true`",
    ),
    Apart(
        "model.offload_activations", lambda r: r.model.activation_checkpointing is False,
        "what is kept in the host's memory is what activations are recomputed from",
        "`--set model.activation_checkpointing=true`",
    ),
)  # fmt: skip


def clashes_of(recipe: Recipe) -> Iterator[Apart]:
    """Return what parts that are on don't go with."""
    on = {part.key for part in PARTS if part.on(recipe)}
    return (row for row in CLASHES if row.key in on and row.clashes(recipe))


def switch_on(recipe: Recipe, *, on_cpu: bool) -> tuple[Recipe, dict[str, str]]:
    """Decide of each part that is `auto` whether it is on.

    Returns:
        The recipe, and by key of a part that long samples would want why it is left out.
    """
    decided: dict[str, object] = {}
    left: dict[str, str] = {}
    for part in PARTS:
        name = part.key.removeprefix("model.")
        if getattr(recipe.model, name) != "auto":
            continue
        why = _against(part, recipe, on_cpu=on_cpu) if recipe.model.long_context else ""
        decided[name] = recipe.model.long_context and not why
        if why:
            left[part.key] = why
    return _changed(recipe, decided), left


def _against(part: Feature, recipe: Recipe, *, on_cpu: bool) -> str:
    if part.accelerator and on_cpu:
        return "on a CPU they are there already"
    if part.tasks and recipe.task not in part.tasks:
        return f"not in the task `{recipe.task}`"
    clashes = (c.message for c in CLASHES if c.key == part.key and c.clashes(recipe))
    return next(clashes, "")


def leave_out(recipe: Recipe, asked: Recipe, found: Mapping[str, str]) -> Recipe:
    """Switch off what a model can't do.

    Args:
        recipe: with every part decided.
        asked: as it was, with its `auto`.
        found: by key of a part, why the model can't.

    Raises:
        RecipeError: the recipe itself asks for that part.
    """
    off: dict[str, object] = {}
    for key, why in found.items():
        name = key.removeprefix("model.")
        if getattr(asked.model, name) is True:
            raise RecipeError(why, where=Where(key=key), hint=f"`--set {key}=false`")
        off[name] = False
    return _changed(recipe, off)


def unproved(recipe: Recipe, asked: Recipe, why: str) -> dict[str, str]:
    """Return the parts that nobody asked for by name, of a model that could not be traced."""
    names = [part.key.removeprefix("model.") for part in parts_on(recipe)]
    return {
        f"model.{name}": f"the model couldn't be traced: {why}"
        for name in names
        if getattr(asked.model, name) == "auto"
    }


def parts_on(recipe: Recipe) -> list[Feature]:
    """Return the parts that are on."""
    return [part for part in PARTS if part.on(recipe)]


def _changed(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    model = recipe.model.model_copy(update=dict(values))
    return recipe.model_copy(update={"model": model})
