"""From a name or file and overrides to a validated recipe.

`extends` is followed, mappings are merged key by key, `--set` comes last. All findings of a recipe
are collected and raised at once, each with the file and line that gave the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dslm.errors import Finding, OptionError, RecipeError, Where, did_you_mean
from dslm.presets import preset_names, preset_path
from dslm.recipe.schema import Recipe
from dslm.recipe.yaml import OPTION, Document, parse_value, parse_yaml
from dslm.secrets import HINT, find_secrets

# These hold alternatives: what a child says replaces the parent's whole mapping.
_REPLACED_WHOLE = frozenset({"duration"})
_MESSAGES = {
    "extra_forbidden": "there is no key `{key}`",
    "missing": "`{key}` is missing",
    "int_type": "`{key}` must be a whole number, not {input}",
    "int_parsing": "`{key}` must be a whole number, not {input}",
    "int_from_float": "`{key}` must be a whole number, not {input}",
    "float_type": "`{key}` must be a number, not {input}",
    "float_parsing": "`{key}` must be a number, not {input}",
    "bool_type": "`{key}` must be true or false, not {input}",
    "bool_parsing": "`{key}` must be true or false, not {input}",
    "string_type": "`{key}` must be text, not {input}",
    "literal_error": "`{key}` must be {expected}, not {input}",
    "greater_than": "`{key}` must be more than {gt}, not {input}",
    "greater_than_equal": "`{key}` must be at least {ge}, not {input}",
    "less_than": "`{key}` must be less than {lt}, not {input}",
    "dict_type": "`{key}` must be a mapping, not {input}",
    "model_type": "`{key}` must be a mapping, not {input}",
    "list_type": "`{key}` must be a list, not {input}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRecipe:
    """A recipe, its name, the file it came from, and where each of its keys was given."""

    recipe: Recipe
    name: str
    source: Path
    places: dict[str, Where]

    def where(self, key: str) -> Where:
        """The place of a dotted key as the user gave it: `--set KEY`, or the file and its line.

        A key that nobody gave is missing in the recipe's own file.
        """
        return _where(key, self.places, self.source)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a preset or a file, with what it extends, and apply overrides (`a.b=value`).

    Raises:
        RecipeError: unknown preset, unreadable file, or an invalid recipe (all findings at once).
        OptionError: an override isn't `KEY=VALUE`.
    """
    source = find_recipe(name)
    tree, places = read_tree(source)
    for override in overrides:
        _apply_override(tree, places, override)
    _check_secrets(tree, places, source)
    return LoadedRecipe(
        recipe=validate(tree, places, source), name=source.stem, source=source, places=places
    )


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a path (relative to `beside`, the file that extends it) or a preset.

    Raises:
        RecipeError: there is none.
    """
    is_file_name = name.endswith((".yaml", ".yml")) or "/" in name
    path = (beside.parent if beside else Path()) / Path(name).expanduser()
    if is_file_name:
        if path.is_file():
            return path
        raise RecipeError(
            "there is no such recipe file",
            where=Where(file=name),
            hint="`dslm recipes list` shows the presets; `dslm recipes new FILE` writes your own",
        )
    preset = preset_path("recipes", name, ".yaml")
    if preset is None:
        raise RecipeError(
            f"there is no preset `{name}`",
            where=Where(file=beside) if beside else None,
            hint=did_you_mean(name, preset_names("recipes", ".yaml"))
            or "`dslm recipes list` shows the presets",
        )
    return preset


def read_tree(
    source: Path,
    seen: tuple[Path, ...] = (),
    cache: dict[Path, Document] | None = None,
) -> tuple[dict[str, Any], dict[str, Where]]:
    """The merged tree of a recipe file and all that it extends, and where each key came from."""
    source = source.resolve()
    if source in seen:
        chain = " → ".join(path.stem for path in (*seen, source))
        raise RecipeError(
            f"recipes extend each other in a circle: {chain}", where=Where(file=seen[-1])
        )
    document = (cache or {}).get(source)
    if document is None:
        document = _read(source)
        if cache is not None:
            cache[source] = document
    parents = document.tree.get("extends", [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(
            "`extends` must be a preset's name, a file, or a list of them",
            where=document.places["extends"],
        )
    tree: dict[str, Any] = {}
    places: dict[str, Where] = {}
    for name in names:
        parent, above = read_tree(find_recipe(name, source), (*seen, source), cache)
        merge(tree, parent)
        places.update(above)
    own = {key: value for key, value in document.tree.items() if key != "extends"}
    merge(tree, own)
    places.update({k: v for k, v in document.places.items() if k != "extends"})
    return tree, _without_gone(places, tree)


def _without_gone(places: Mapping[str, Where], tree: Mapping[str, Any]) -> dict[str, Where]:
    """The places of the keys that are still in the tree: what replaces a mapping drops its keys."""
    paths = set(_paths(tree, ""))
    return {key: place for key, place in places.items() if key in paths}


def _paths(value: Any, prefix: str) -> Iterator[str]:
    """Every dotted path in a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in items:
        yield f"{prefix}{key}"
        if isinstance(below, dict | list):
            yield from _paths(below, f"{prefix}{key}.")


def merge(target: dict[str, Any], source: Mapping[str, Any], *, top: bool = True) -> None:
    """Merge mappings into mappings, in place; anything else replaces."""
    for key, value in source.items():
        old = target.get(key)
        whole = top and key in _REPLACED_WHOLE
        if isinstance(value, dict) and isinstance(old, dict) and not whole:
            merge(old, value, top=False)
        elif isinstance(value, dict):
            target[key] = {}
            merge(target[key], value, top=False)
        else:
            target[key] = value


def validate(tree: Mapping[str, Any], places: Mapping[str, Where], source: Path) -> Recipe:
    """The typed recipe of a tree.

    Raises:
        RecipeError: with every finding.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as failure:
        findings = list(_findings(failure, tree, places, source))
    if len(findings) == 1:
        only = findings[0]
        raise RecipeError(only.message, where=only.where, hint=only.hint)
    raise RecipeError(
        f"{len(findings)} things are wrong with this recipe",
        where=Where(file=_shown(source)),
        findings=findings,
    )


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default included; `read_resolved` gives it back unchanged."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )


def read_resolved(path: Path) -> Recipe:
    """Read a recipe that `dump_recipe` wrote.

    Raises:
        RecipeError: it was changed into something invalid.
    """
    document = _read(path)
    return validate(document.tree, document.places, path)


def _read(source: Path) -> Document:
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise RecipeError(
            f"can't read it: {failure}", where=Where(file=_shown(source))
        ) from failure
    return parse_yaml(text, _shown(source))


def _shown(source: Path) -> Path:
    """A path as people know it: relative to where they are, if it is below."""
    resolved = source.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else source


def _apply_override(tree: dict[str, Any], places: dict[str, Where], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise OptionError(
            f"`{override}` is not KEY=VALUE",
            where=Where(key=OPTION),
            hint="such as `--set batch.global_size=64`",
        )
    try:
        value, given = parse_value(text, key)
    except ValueError as failure:
        raise OptionError(
            f"the value is not YAML: {failure}", where=Where(file=OPTION, key=key)
        ) from failure
    *parents, last = key.split(".")
    place = tree
    for parent in parents:
        below = place.get(parent)
        if not isinstance(below, dict):
            below = place[parent] = {}
        place = below
    if parents == ["duration"]:
        place.clear()  # exactly one of steps, epochs and tokens
    place[last] = value
    for path in [path for path in places if path.startswith(f"{key}.")]:
        del places[path]
    places.update(given)


def _check_secrets(tree: Mapping[str, Any], places: Mapping[str, Where], source: Path) -> None:
    """Check that a recipe holds no secret: it is written into the run directory."""
    for key, why in find_secrets(tree):
        raise RecipeError(
            f"this {why}, and a recipe is written into the run directory",
            where=_where(key, places, source),
            hint=HINT,
        )


def _findings(
    failure: ValidationError, tree: Mapping[str, Any], places: Mapping[str, Where], source: Path
) -> Iterator[Finding]:
    seen: set[str] = set()
    errors = failure.errors(include_url=False)
    for error in errors:
        key = _key_of(error["loc"], tree)
        # a union reports each alternative: one message per key is enough
        if key in seen:
            continue
        seen.add(key)
        context = error.get("ctx", {})
        alternatives = [e for e in errors if _key_of(e["loc"], tree) == key]
        if len(alternatives) > 1 and error["type"] != "extra_forbidden":
            message = f"`{key}` is wrong: " + " or ".join(
                dict.fromkeys(e["msg"].lower() for e in alternatives)
            )
            message += f"; it is {error['input']!r}"
        elif error["type"] == "value_error":
            message = str(context["error"])
        else:
            template = _MESSAGES.get(error["type"], "`{key}`: " + error["msg"].lower())
            message = template.format(key=key, input=repr(error["input"]), **context)
        hint = _hint(key) if error["type"] == "extra_forbidden" else ""
        yield Finding(message=message, where=_where(key, places, source), hint=hint)


def _key_of(loc: Sequence[int | str], tree: Mapping[str, Any]) -> str:
    """The dotted key of a location, without the names that pydantic gives to alternatives."""
    parts: list[str] = []
    place: Any = tree
    for part in loc:
        if isinstance(place, dict) and (part in place or _is_field(parts, part)):
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int):
            place = place[part] if part < len(place) else None
        else:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _is_field(parts: Sequence[str], part: int | str) -> bool:
    return ".".join([*parts, str(part)]) in known_keys()


def _where(key: str, places: Mapping[str, Where], source: Path) -> Where:
    """The place of a key; of one that is missing, the nearest above it that the user gave."""
    shown = _shown(source)
    parts = key.split(".") if key else []
    for length in range(len(parts), 0, -1):
        place = places.get(".".join(parts[:length]))
        if place is not None and (length == len(parts) or place.file in (shown, OPTION)):
            return Where(file=place.file, line=place.line, key=key)
    return Where(file=shown, key=key or None)


def known_keys() -> list[str]:
    """Every dotted key that a recipe may have."""
    return list(_keys_below(Recipe, ""))


def _keys_below(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for type_ in (field.annotation, *get_args(field.annotation)):
            if isinstance(type_, type) and issubclass(type_, BaseModel):
                yield from _keys_below(type_, f"{prefix}{name}.")


def _hint(key: str) -> str:
    """The nearest known key: among its siblings first, then by its last part anywhere."""
    known = known_keys()
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    near = did_you_mean(name, siblings)
    if near:
        return near.replace(near.split("`")[1], siblings[near.split("`")[1]])
    elsewhere = {k.rpartition(".")[2]: k for k in known}
    near = did_you_mean(name, elsewhere)
    if near:
        return near.replace(near.split("`")[1], elsewhere[near.split("`")[1]])
    return f"known here: {', '.join(siblings)}" if siblings else ""
