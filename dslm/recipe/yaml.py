"""YAML text to a tree that remembers the file and line of every key.

Text in, plain mappings and the place of each dotted key out. Knows YAML, not recipes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dslm.errors import RecipeError, Where

OPTION = "--set"  # where an override stands
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.1 takes `2e-5` for text; YAML 1.2, and whoever writes a learning rate, for a number.
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML mapping, and where each dotted key stands."""

    tree: dict[str, Any]
    places: dict[str, Where]


def parse_yaml(text: str, file: str | Path) -> Document:
    """Parse a YAML mapping.

    Raises:
        RecipeError: it doesn't parse, is no mapping, or has a key twice; with file and line.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        places: dict[str, Where] = {}
        tree = _build(node, "", file, places, loader) if node is not None else {}
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        line = mark.line + 1 if mark else None
        if failure.context_mark and failure.context and "flow" in failure.context:
            line = failure.context_mark.line + 1
        raise RecipeError(
            f"this is not YAML: {failure.problem or failure.context}",
            where=Where(file=file, line=line),
            hint=f"{failure.context}" if failure.context else "",
        ) from failure
    except yaml.YAMLError as failure:
        raise RecipeError(f"this is not YAML: {failure}", where=Where(file=file)) from failure
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        raise RecipeError(
            f"a recipe is a mapping of keys to values, not a {type(tree).__name__}",
            where=Where(file=file, line=1),
        )
    return Document(tree, places)


def parse_value(text: str, key: str) -> tuple[Any, dict[str, Where]]:
    """The value that `--set` gives to a key, and the place of each key in it.

    The text is `8`, `2e-5`, `[a, b]`, `{steps: 10}` or plain words.

    Raises:
        ValueError: it is not YAML.
    """
    loader = _Loader(text)
    places: dict[str, Where] = {}
    try:
        node = loader.get_single_node()
        value = _build(node, key, OPTION, places, loader) if node is not None else None
    except yaml.YAMLError as failure:
        raise ValueError(str(failure).splitlines()[0]) from failure
    finally:
        loader.dispose()
    return value, {key: Where(file=OPTION, key=key)} | places


def _build(node: Any, key: str, file: str | Path, places: dict[str, Where], loader: Any) -> Any:
    """Plain values of a node; notes the place of every key below it."""
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(key_node.value)
            path = f"{key}.{name}" if key else name
            line = None if file == OPTION else key_node.start_mark.line + 1
            place = Where(file=file, line=line, key=path)
            if name in result:
                first = "" if line is None else f"; the first is in line {places[path].line}"
                raise RecipeError(f"`{path}` stands here twice{first}", where=place)
            places[path] = place
            result[name] = _build(value_node, path, file, places, loader)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(item, f"{key}.{i}", file, places, loader) for i, item in enumerate(node.value)
        ]
    if node.tag == "tag:yaml.org,2002:str" and node.style is None and _FLOAT.fullmatch(node.value):
        return float(node.value)
    return loader.construct_object(node, deep=True)
