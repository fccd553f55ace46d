"""The catalogue: presets with a line each, a new recipe that extends one, the JSON Schema.

Listing reads the YAML and validates nothing, so that it stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm.presets import preset_names
from dslm.recipe.tree import Trees, find_recipe, read_tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A recipe that ships with dslm."""

    name: str
    task: str
    description: str
    path: Path
    architecture: dict[str, Any]


def entries() -> list[Preset]:
    """All presets, by name."""
    known: Trees = {}
    found = []
    for name in preset_names("recipes", ".yaml"):
        path = find_recipe(name)
        tree = read_tree(path, known=known).values
        found.append(
            Preset(
                name=name,
                task=tree.get("task", "pretrain"),
                description=tree.get("description", ""),
                path=path,
                architecture=tree.get("model", {}).get("architecture", {}),
            )
        )
    return found


def new_recipe_text(preset: str) -> str:
    """The YAML of a recipe of one's own that extends a preset.

    Raises:
        RecipeError: there is no such preset.
    """
    tree = read_tree(find_recipe(preset)).values
    batch = tree.get("batch", {}).get("global_size", 32)
    rate = tree.get("optimizer", {}).get("lr", 2e-5)
    length = tree.get("data", {}).get("sequence_length", 1024)
    return f"""\
# `dslm recipes show THIS_FILE` shows everything that it inherits.
extends: {preset}
description: my own {preset}
data:
  train: {tree.get("data", {}).get("train") or "data/*.txt"}   # file, folder, pattern or Hub name
  eval: 0.02          # this share of the documents is held out
  sequence_length: {length}
batch: {{global_size: {batch}}}   # the same on any number of GPUs
optimizer: {{lr: {float(rate):.1e}}}
duration: {{epochs: 1}}
"""


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file (one may also have `extends`)."""
    from dslm.recipe.schema import Recipe

    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "dslm recipe"
    schema["properties"]["extends"] = {
        "description": "The preset or file, or list of them, that this recipe inherits from.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema["required"] = []
    return schema
