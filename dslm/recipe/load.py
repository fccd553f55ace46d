"""From a name or file and overrides to a validated recipe, with the place of each of its keys.

All findings of a recipe are collected and raised at once, each with the option or the file and line
that gave the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dslm.errors import RecipeError, Where
from dslm.presets import ANY_MODEL, is_purpose, is_shipped
from dslm.recipe.findings import findings
from dslm.recipe.hints import other_tool
from dslm.recipe.schema import Recipe
from dslm.recipe.tree import (
    EXTENDS,
    Tree,
    find_recipe,
    override,
    parents_of,
    place_of,
    read_document,
    read_tree,
    shown,
)
from dslm.recipe.yaml import dump_yaml
from dslm.secrets import HINT, find_secrets


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRecipe:
    """A recipe, its name, the file it came from, and where each of its keys was given."""

    recipe: Recipe
    name: str
    source: Path
    places: dict[str, Where]

    def where(self, key: str) -> Where:
        """The place of a dotted key as the user gave it: `--set KEY`, or the file and its line.

        A key that was not given is missing in the recipe's own file.
        """
        return place_of(key, self.places, self.source)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a preset or a file, with what it extends, and apply overrides (`a.b=value`).

    Raises:
        RecipeError: unknown preset, unreadable file, or an invalid recipe (all findings at once).
        OptionError: an override isn't `KEY=VALUE`.
    """
    source = find_recipe(name)
    if is_purpose(source):
        raise RecipeError(
            f"`{name}` is a purpose, which trains nothing without a model",
            hint=f"`dslm train MODEL --with {name}`; `dslm recipes list` shows the models",
        )
    tree = read_tree(source)
    for setting in overrides:
        tree = override(tree, setting)
    recipe = _validated(tree, source)
    named = recipe.model.name if source.stem == ANY_MODEL and is_shipped(source) else None
    stem = Path(named).name if named else source.stem
    called = "-".join((stem, *_purposes(overrides)))
    return LoadedRecipe(recipe=recipe, name=called, source=source, places=tree.places)


def _purposes(overrides: Sequence[str]) -> Iterator[str]:
    """The names of what overrides put on the recipe."""
    for setting in overrides:
        key, _, text = setting.partition("=")
        if key.strip() == EXTENDS:
            yield from (Path(name).stem for name in parents_of(text))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default included; `read_resolved` gives it back unchanged."""
    return dump_yaml(recipe.model_dump(mode="json"))


def read_resolved(path: Path) -> Recipe:
    """Read a recipe that `dump_recipe` wrote, as it is: for who works where the run does.

    Raises:
        RecipeError: it was changed into something invalid.
    """
    document = read_document(path)
    return _validated(Tree(document.tree, document.places), path)


def recipe_of_run(path: Path) -> Recipe:
    """Read a run's recipe, its relative paths seen from the current folder.

    Raises:
        RecipeError: it was changed into something invalid.
    """
    return _validated(read_tree(path), path)


def _validated(tree: Tree, source: Path) -> Recipe:
    """The typed recipe of a tree, which holds no secret: it is written into the run directory."""

    def where(key: str) -> Where:
        return place_of(key, tree.places, source)

    for key, why in find_secrets(tree.values):
        raise RecipeError(
            f"this {why}, and a recipe is written into the run directory",
            where=where(key),
            hint=HINT,
        )
    try:
        return Recipe.model_validate(tree.values)
    except ValidationError as failure:
        found = findings(failure, tree.values, where)
    tool = other_tool(tree.values, [str(finding.where.key) for finding in found])
    if len(found) == 1:
        hint = "; ".join(filter(None, (found[0].hint, tool)))
        raise RecipeError(found[0].message, where=found[0].where, hint=hint)
    raise RecipeError(
        f"{len(found):,} problems were found in this recipe",
        where=Where(file=shown(source)),
        findings=found,
        hint=tool,
    )
