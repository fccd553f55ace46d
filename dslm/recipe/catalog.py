"""The catalogue: presets and purposes with a line each, a new recipe, the JSON Schema.

Listing reads the YAML and validates nothing, so that it stays fast.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm.errors import OptionError, RecipeError, Where, did_you_mean, shortened
from dslm.files import exists
from dslm.presets import ANY_MODEL, is_purpose, is_shipped, preset_names, purpose_names
from dslm.recipe.tree import (
    EXTENDS,
    Trees,
    find_recipe,
    override,
    parents_of,
    read_document,
    read_tree,
)

_EXAMPLES = {
    "sft": "chats.jsonl",
    "kto": "labelled.jsonl",
    "grpo": "questions.jsonl",
    **dict.fromkeys(("dpo", "orpo", "reward"), "pairs.jsonl"),
}
_TRAIN = "file, folder, pattern or Hub name; a path is relative to this file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A recipe that ships with dslm."""

    name: str
    task: str
    description: str
    path: Path
    architecture: dict[str, Any]

    @property
    def family(self) -> str:
        """Models that are of one kind: they are in one folder."""
        return self.path.parent.name


def entries() -> list[Preset]:
    """Return all presets, by name."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """A fragment of a recipe that ships with dslm and composes with any model."""

    name: str
    description: str
    comment: str  # when to take it, and where its numbers are from
    task: str | None  # None: that of the model's preset stays


def purposes() -> list[Purpose]:
    """Return all purposes, by name."""
    found = []
    for name in purpose_names():
        path = find_recipe(name)
        document = read_document(path)
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        found.append(
            Purpose(
                name=name,
                description=document.tree["description"],
                comment="\n".join(comment),
                task=document.tree.get("task"),
            )
        )
    return found


def put_on(names: Sequence[str]) -> list[str]:
    """Return the override that puts purposes on a recipe: `extends=sft,lora`; none for no names.

    Args:
        names: purposes or recipe files, each text with one or several (`sft,lora`).

    Raises:
        OptionError: one is no purpose, or two of them decide what is learnt.
    """
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    known = {purpose.name: purpose for purpose in purposes()} if wanted else {}
    tasks = []
    for name in wanted:
        if name in known:
            tasks += [name] if known[name].task else []
        elif not name.endswith((".yaml", ".yml")):
            raise OptionError(
                f"there is no purpose `{shortened(name)}`",
                where=Where(key="--with"),
                hint=did_you_mean(name, known) or f"there are: {', '.join(known)}",
            )
    if len(tasks) > 1:
        both = " and ".join(f"`{name}`" for name in tasks)
        raise OptionError(
            f"{both} both decide what is learnt", where=Where(key="--with"), hint="give one of them"
        )
    return [f"{EXTENDS}={','.join(wanted)}"] if wanted else []


def new_recipe_text(
    preset: str,
    names: Sequence[str] = (),
    model: str | None = None,
    *,
    folder: Path = Path(),
) -> str:
    """Return the YAML of a recipe of one's own that extends a preset, with purposes on it.

    Args:
        preset: the preset; not looked at where there is a model.
        names: the purposes.
        model: any model's Hub name or folder.
        folder: where the file will be: paths in it are seen from there.

    Raises:
        RecipeError: there is no such preset, or it is a purpose.
        OptionError: there is no such purpose.
    """
    given = put_on(names)
    preset = preset if model is None else ANY_MODEL
    source = _of_a_model(preset)
    tree = read_tree(source)
    for setting in given:
        tree = override(tree, setting)
    values = tree.values
    wanted = [name for setting in given for name in parents_of(setting.partition("=")[2])]
    known = {purpose.name: purpose for purpose in purposes()}
    comments = "".join(
        f"# {name}: {known[name].description}\n{known[name].comment}\n"
        for name in wanted
        if name in known
    )
    parents = ", ".join(_parent(name, folder) for name in (preset, *wanted))
    parents = f"[{parents}]" if wanted else parents
    given_name = Path(model).name if model else Path(preset).stem
    description = json.dumps(" ".join(("my own", given_name, *(Path(n).stem for n in wanted))))
    batch = values.get("batch", {}).get("global_size", 32)
    rate = values.get("optimizer", {}).get("lr", 2e-5)
    length = values.get("data", {}).get("sequence_length", 1024)
    train = values.get("data", {}).get("train")
    if train is None:
        train = _EXAMPLES.get(values.get("task", ""), "data/*.txt")
    said = train != values.get("data", {}).get("train") or is_shipped(source)
    data = f"  train: {train}   # {_TRAIN}\n" if said else ""  # else the user's own file says it
    epochs = values.get("duration", {}).get("epochs", 1)
    return f"""\
# `dslm recipes show THIS_FILE` shows everything that it inherits.
{comments}extends: {parents}
description: {description}
{f"model: {{name: {json.dumps(_from(model, folder))}}}" + chr(10) if model else ""}data:
{data}  eval: 0.02          # this share of the documents is held out
  sequence_length: {length}
batch: {{global_size: {batch}}}   # the same on any number of GPUs
optimizer: {{lr: {float(rate):.1e}}}
duration: {{epochs: {epochs}}}
"""


def _of_a_model(name: str) -> Path:
    """The file of a recipe that isn't a purpose."""
    source = find_recipe(name)
    if is_purpose(source):
        raise RecipeError(
            f"`{name}` is a purpose, which trains nothing without a model",
            hint=f"`--from MODEL --with {name}`",
        )
    return source


def _parent(name: str, folder: Path) -> str:
    """The name of what a file in a folder extends, as YAML."""
    is_file_name = name.endswith((".yaml", ".yml")) or "/" in name
    return json.dumps(_from(name, folder), ensure_ascii=False) if is_file_name else name


def _from(name: str, folder: Path) -> str:
    """A path as it is seen from a folder; a name on the Hub, and a whole path, as they are."""
    if name.startswith(("/", "~")) or not exists(Path(name)):
        return name
    seen = os.path.relpath(name, folder)
    return seen if seen.startswith("..") else f"./{seen}"


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file (one may also have `extends`)."""
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
