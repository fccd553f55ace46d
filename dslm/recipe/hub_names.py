"""What a recipe names that isn't on this machine, and so comes from the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from dslm.files import exists, expanded, is_file
from dslm.presets import preset_path
from dslm.recipe.data_paths import origins
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WITHOUT_TEXT = frozenset({"vision", "sequence", "script"})  # tasks that use no tokenizer
# each of these makes a folder a tokenizer's
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt",
    "vocab.json", "sentencepiece.bpe.model",
)  # fmt: skip


class Kind(StrEnum):
    """What is fetched of a name."""

    MODEL = "model"
    TOKENIZER = "tokenizer"
    DATA = "data set"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubName:
    """A model, or a data set, on the Hub."""

    kind: Kind
    name: str
    revision: str = "main"


def hub_names(recipe: Recipe) -> list[HubName]:
    """Return what the ranks of a training fetch from the Hub, each once; empty: nothing.

    Raises:
        DataError: a path in the data is missing.
    """
    found = [*_of_models(recipe)]
    for key in ("train", "eval"):
        for origin in origins(recipe, key):
            if origin.hub_name is not None:
                found.append(HubName(kind=Kind.DATA, name=origin.hub_name))
    return list(dict.fromkeys(found))


def _of_models(recipe: Recipe) -> Iterator[HubName]:
    model = recipe.model
    if model.init == "pretrained" and elsewhere(model.name):
        yield HubName(kind=Kind.MODEL, name=model.name, revision=model.revision)
    tokenizer = None if recipe.task in WITHOUT_TEXT else model.tokenizer or model.name
    if isinstance(tokenizer, str) and elsewhere(tokenizer):
        yield HubName(kind=Kind.TOKENIZER, name=tokenizer, revision=model.revision)
    template = recipe.data.chat_template
    if (
        template is not None
        and not is_file(expanded(template))
        and preset_path("recipes", template, ".yaml")
    ):
        lends = load_recipe(template).recipe.model
        if elsewhere(lends.name):
            yield HubName(kind=Kind.TOKENIZER, name=lends.name, revision=lends.revision)
    for name in (reward.model for reward in recipe.rewards):
        if elsewhere(name):
            yield from (HubName(kind=kind, name=name) for kind in (Kind.MODEL, Kind.TOKENIZER))


def elsewhere(name: str | None) -> TypeGuard[str]:
    """Return whether a name is no file or folder of this machine."""
    return name is not None and not exists(expanded(name))
