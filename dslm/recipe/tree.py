"""The tree of a recipe: its file, what that extends, the overrides; and where each key was given.

Names and files in, plain mappings and places out; what they mean is the schema's to say. Paths in a
user's file are relative to that file, those of a run to where it began; those of an override, and
of a preset, to the current folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm.codec import Malformed, read_object
from dslm.errors import OptionError, RecipeError, Where, did_you_mean, shortened
from dslm.files import exists, expanded, is_file, is_folder
from dslm.presets import ANY_MODEL, is_purpose, is_shipped, preset_names, preset_path, purpose_names
from dslm.reading import LONGEST_KEY, MOST_LEVELS, read_text, wrong_text
from dslm.recipe.yaml import OPTION, Document, parse_value, parse_yaml

_LONGEST_CHAIN = 32
_MOST_PARENTS = 50
# These hold alternatives: what a child says replaces the parent's whole mapping.
_REPLACED_WHOLE = frozenset({"duration"})
EXTENDS = "extends"
_VERBATIM = "environment"  # variables are text: `OMP_NUM_THREADS: 4` needs no quotes


@dataclass(frozen=True, slots=True)
class Tree:
    """Merged settings, and the place where the user gave each dotted key."""

    values: dict[str, Any]
    places: dict[str, Where]


Trees = dict[Path, Tree]


def find_recipe(name: str, beside: Where | None = None) -> Path:
    """The file of a recipe: a path (relative to the file of `beside`, which names it) or a preset.

    Raises:
        RecipeError: there is none.
    """
    is_file_name = name.endswith((".yaml", ".yml")) or "/" in name
    path = (Path(beside.file).parent if beside and beside.file else Path()) / expanded(name)
    if is_file_name:
        if is_file(path):
            return path
        raise RecipeError(
            f"there is no recipe file `{shortened(str(path), 300)}`",
            where=beside,
            hint="`dslm recipes list` shows the presets; `dslm recipes new FILE` writes your own",
        )
    preset = preset_path("recipes", name, ".yaml")
    if preset is None:
        raise RecipeError(
            f"there is no preset `{shortened(name)}`",
            where=beside,
            hint=did_you_mean(name, (*preset_names("recipes", ".yaml"), *purpose_names()))
            or "`dslm recipes list` shows the presets",
        )
    return preset


def read_tree(source: Path, chain: tuple[Path, ...] = (), known: Trees | None = None) -> Tree:
    """Return the merged tree of a recipe file and all that it extends.

    Args:
        source: the file.
        chain: the files that led to it, each extending the next.
        known: what was read already; a file is read and merged once, however often it is extended.

    Raises:
        RecipeError: a file is missing or wrong, or they extend each other in a circle.
    """
    known = {} if known is None else known
    source = source.resolve()
    if source in chain:
        circle = " → ".join(path.stem for path in (*chain, source))
        raise RecipeError(
            f"recipes extend each other in a circle: {circle}", where=Where(file=shown(chain[-1]))
        )
    if len(chain) > _LONGEST_CHAIN:
        raise RecipeError(
            f"recipes extend each other more than {_LONGEST_CHAIN} levels deep",
            where=Where(file=shown(source)),
        )
    if source not in known:
        document = read_document(source)
        values: dict[str, Any] = {}
        places: dict[str, Where] = {}
        for name in _parents(document):
            file = find_recipe(name, document.places["extends"])
            parent = read_tree(file, (*chain, source), known)
            merge(values, parent.values)
            places.update(parent.places)
        kept_out = (EXTENDS, "description") if is_purpose(source) else (EXTENDS,)
        own = {key: value for key, value in document.tree.items() if key not in kept_out}
        merge(values, own if is_shipped(source) else _beside(own, _seen_from(source)))
        places.update({k: v for k, v in document.places.items() if k != "extends"})
        known[source] = Tree(values, _without_gone(places, values))
    return known[source]


def read_document(source: Path) -> Document:
    """Return a recipe file on its own.

    Raises:
        RecipeError: it can't be read, or is no YAML mapping.
    """
    text = read_text(shown(source), error=RecipeError)
    return parse_yaml(text, shown(source), verbatim=_VERBATIM)


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


def override(tree: Tree, setting: str) -> Tree:
    """Return the tree with `KEY=VALUE` on top.

    Raises:
        OptionError: it isn't that.
        RecipeError: its value is no YAML.
    """
    key, equals, text = setting.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts) or wrong_text(key):
        raise OptionError(
            f"`{shortened(setting)}` is not KEY=VALUE",
            where=Where(key=OPTION),
            hint="such as `--set batch.global_size=64`",
        )
    if len(parts) > MOST_LEVELS or max(map(len, parts)) > LONGEST_KEY:
        raise OptionError(
            f"a key has at most {MOST_LEVELS} parts of {LONGEST_KEY} characters",
            where=Where(key=OPTION),
        )
    if key == EXTENDS:
        return _extended(tree, parents_of(text))
    value, given = parse_value(text, key, verbatim=_VERBATIM)
    values: dict[str, Any] = {}
    merge(values, tree.values)
    below = values
    for part in parts[:-1]:
        if not isinstance(below.get(part), dict):
            below[part] = {}
        below = below[part]
    if parts[:-1] == ["duration"]:
        below.clear()  # exactly one of steps, epochs and tokens
    below[parts[-1]] = value
    kept = {path: place for path, place in tree.places.items() if not path.startswith(f"{key}.")}
    return Tree(values, _without_gone(kept | given, values))


def parents_of(text: str) -> list[str]:
    """Return the names in `extends=a,b`, which puts recipes on the one that is loaded."""
    value, _ = parse_value(text, EXTENDS)
    names = value if isinstance(value, list) else str(value or "").split(",")
    return [str(name).strip() for name in names if name is not None and str(name).strip()]


def _extended(tree: Tree, names: Sequence[str]) -> Tree:
    """The tree with recipes, purposes most often, merged over it in their order."""
    values: dict[str, Any] = {}
    merge(values, tree.values)
    places = dict(tree.places)
    for name in names:
        parent = read_tree(find_recipe(name, Where(file=OPTION, key=EXTENDS)))
        merge(values, parent.values)
        places.update(parent.places)
    return Tree(values, _without_gone(places, values))


def place_of(key: str, places: Mapping[str, Where], source: Path) -> Where:
    """The place of a key; of one that is missing, the nearest above it that the user gave."""
    of_any = source.stem == ANY_MODEL and is_shipped(source.resolve())  # `--model`: nobody's file
    own = None if of_any else shown(source)
    parts = key.split(".") if key else []
    for length in range(len(parts), 0, -1):
        place = places.get(".".join(parts[:length]))
        if place is not None and (length == len(parts) or place.file in (own, OPTION)):
            return Where(file=place.file, line=place.line, key=shortened(key))
    return Where(file=own, key=shortened(key) or None)


def shown(source: Path) -> Path:
    """Return a path as people know it: relative to where they are, if it is below."""
    resolved = source.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else source


def _parents(document: Document) -> list[str]:
    given = document.tree.get("extends", [])
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(
            "`extends` must be a preset's name, a file, or a list of them",
            where=document.places["extends"],
        )
    if len(names) > _MOST_PARENTS:
        raise RecipeError(
            f"a recipe extends at most {_MOST_PARENTS} others, not {len(names):,}",
            where=document.places["extends"],
        )
    return names


def _without_gone(places: Mapping[str, Where], values: dict[str, Any]) -> dict[str, Where]:
    """The places of the keys that are still there: what replaces a mapping drops its keys."""
    paths = set(_paths(values, ""))
    return {key: place for key, place in places.items() if key in paths}


def _paths(value: dict[str, Any] | list[Any], prefix: str) -> Iterator[str]:
    """Every dotted path in a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in items:
        yield f"{prefix}{key}"
        if isinstance(below, dict | list):
            yield from _paths(below, f"{prefix}{key}.")


def _seen_from(source: Path) -> Path:
    """The folder that a file's relative paths are seen from: its own; of a run, where that began.

    Where a run's is gone, or isn't known, that is the current one.
    """
    if source.name != "recipe.yaml":
        return source.parent
    try:
        manifest = read_object(source.with_name("manifest.json").read_bytes())
    except (OSError, Malformed):
        return source.parent
    if not isinstance(manifest.get("attempts"), list):
        return source.parent  # somebody else's
    began = Path(str(manifest.get("folder") or ""))
    return began if began.is_absolute() and is_folder(began) else Path.cwd()


def _beside(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a user's file, its relative paths seen from the current folder."""
    if folder == Path.cwd():
        return dict(values)
    found = dict(values)
    for section, key, is_path in _PATHS:
        if isinstance(found.get(section), dict) and key in found[section]:
            moved = _moved(found[section][key], folder, is_path)
            found[section] = {**found[section], key: moved}
    if isinstance(found.get("rewards"), list):
        found["rewards"] = [_reward_beside(reward, folder) for reward in found["rewards"]]
    return found


def _reward_beside(reward: object, folder: Path) -> object:
    """A reward whose file, or whose model's folder, is seen from the current folder."""
    if not isinstance(reward, dict):
        return reward
    found = dict(reward)
    function = found.get("function")
    if isinstance(function, str) and ":" in function:
        file, _, name = function.rpartition(":")
        found["function"] = f"{_moved(file, folder, bool)}:{name}"
    if "model" in found:
        found["model"] = _moved(found["model"], folder, lambda text: text.startswith((".", "/")))
    return found


def _moved(value: object, folder: Path, is_path: Callable[[str], bool]) -> object:
    if isinstance(value, list):
        return [_moved(item, folder, is_path) for item in value]
    if isinstance(value, dict):
        return {k: _moved(v, folder, is_path) if k == "path" else v for k, v in value.items()}
    if not isinstance(value, str) or not value or value.startswith(("/", "~")):
        return value
    # what is there in either folder is a path; which of the two counts is the recipe's own
    if not (is_path(value) or exists(folder / value) or exists(Path(value))):
        return value
    path = (folder / value).resolve() if not set("*?[").intersection(value) else folder / value
    return f"./{path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else str(path)


def _looks_like_data(text: str) -> bool:
    return bool(
        Path(text).suffix
        or text.startswith(".")
        or text.endswith("/")
        or text.count("/") > 1
        or set("*?[").intersection(text)
    )


# The keys that may hold a path, and what is one for certain; else it may be a name on the Hub.
_PATHS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("data", "train", _looks_like_data),
    ("data", "eval", _looks_like_data),
    ("data", "chat_template", lambda text: "/" in text or "." in text),
    ("model", "name", lambda text: text.startswith((".", "/"))),
    ("model", "tokenizer", lambda text: text.startswith((".", "/"))),
    ("parallel", "nvme_path", bool),
    ("lora", "adapter", bool),
)
