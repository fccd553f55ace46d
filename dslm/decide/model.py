"""Which model a recipe trains: whose architecture, and from which file it is known.

A model that is loaded has the architecture of its folder, whatever else the recipe says. A preset's
`model.architecture` describes the preset's own model: once somebody names another one, it says
nothing any more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dslm import environment
from dslm.errors import RecipeError, Where
from dslm.files import expanded
from dslm.presets import is_shipped
from dslm.reading import read_json
from dslm.recipe.load import LoadedRecipe

_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_MOST_BYTES = 16 << 20  # the names of some thousand classes stand in some


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model's architecture, as a config.json has it; empty: it is not known here."""

    architecture: Mapping[str, object] = field(default_factory=dict)
    folder: Path | None = None  # of a model that is loaded, or whose tokenizer is used
    file: Path | None = None  # the config.json that says the architecture; None: the recipe does


def model_of(loaded: LoadedRecipe) -> ModelSource:
    """Which model a recipe trains.

    Raises:
        RecipeError: the folder isn't there, holds no model, or its config can't be read.
    """
    model = loaded.recipe.model
    folder = local_folder(model.name)
    if folder is None and is_path(model.name):
        raise RecipeError(
            f"there is no model folder `{model.name}`",
            where=loaded.where("model.name"),
            hint="give a folder with a config.json, or a Hub name such as `gpt2`",
        )
    if model.init == "scratch":
        return ModelSource(architecture=model.architecture, folder=folder)
    if folder is not None:
        file = folder / _CONFIG
        if not file.is_file():
            raise RecipeError(
                f"`{model.name}` is not a model folder: it has no config.json",
                where=loaded.where("model.name"),
                hint="it holds an adapter alone: name the model that it is for, or merge the two "
                "(`dslm export RUN --merge`)"
                if (folder / _ADAPTER).is_file()
                else "give a folder written by `save_pretrained`, or a Hub name",
            )
        return ModelSource(architecture=read_config(file), folder=folder, file=file)
    if _describes(loaded):
        return ModelSource(architecture=model.architecture)
    known = downloaded(str(model.name), model.revision)
    return ModelSource(architecture=read_config(known), file=known) if known else ModelSource()


def is_path(name: object) -> bool:
    """Return whether a model's or tokenizer's name can only be a path."""
    return isinstance(name, str) and (name.startswith((".", "/", "~")) or name.count("/") > 1)


def local_folder(name: object) -> Path | None:
    """Return the folder of this name on this machine, if there is one."""
    folder = expanded(name) if isinstance(name, str) else None
    return folder if folder is not None and folder.is_dir() else None


def downloaded(name: str, revision: str) -> Path | None:
    """The config.json of a Hub model in the cache of huggingface_hub, if it was ever loaded."""
    home = os.environ.get(environment.HUB_HOME) or expanded("~/.cache/huggingface")
    cache = Path(os.environ.get(environment.HUB_CACHE) or Path(home) / "hub")
    model = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = (model / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision  # which may be a commit itself
    file = model / "snapshots" / commit / _CONFIG
    return file if file.is_file() else None


def read_config(file: Path) -> dict[str, object]:
    """Return a model's config.json.

    Raises:
        RecipeError: it can't be read, or is not a config.
    """
    # some models' configs say Infinity, such as Mamba2's `time_step_limit`: no size does
    config = read_json(file, error=RecipeError, most_bytes=_MOST_BYTES, constant=str)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise RecipeError(
            "this is not a model's config: it has no `model_type`", where=Where(file=file)
        )
    return config


def _describes(loaded: LoadedRecipe) -> bool:
    """Return whether `model.architecture` describes the model that `model.name` names.

    It is, if both were given in one place, or in presets that ship with dslm: a chat model has the
    sizes of its base. A name that was given elsewhere replaced the one that the sizes belong to.
    """
    named = loaded.places.get("model.name")
    if named is None or (named.file is not None and is_shipped(Path(named.file).resolve())):
        return True
    block = "model.architecture"
    return any(
        place.file == named.file
        for key, place in loaded.places.items()
        if key == block or key.startswith(f"{block}.")
    )
