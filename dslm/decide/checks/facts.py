"""Facts about transformers, TRL and torch from `transformers.json`; imports none of them.

The file is made by `dslm.worker.transformers_facts` for one version of each. Where another one is
installed, what the file does not know is not called unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The kinds that a value has by its Python type, as the file names them.
_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
_SAID = {
    "bool": "true or false", "int": "a whole number", "float": "a number with a point",
    "str": "text", "list": "a list", "dict": "a mapping", "none": "null",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelType:
    """A model type of transformers; `fields` are the entries of its config with their kinds."""

    name: str
    heads: tuple[str, ...]  # auto classes that it has
    code: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)  # the usual name: its own
    fields: Mapping[str, str] = field(default_factory=dict)

    def own(self, name: str) -> str:
        """Return a config entry under the type's own name."""
        return self.names.get(name, name)

    def value(self, architecture: Mapping[str, Any], name: str) -> Any:
        """Return the value of an entry, under its usual name or the type's own."""
        own = self.own(name)
        return architecture[own] if own in architecture else architecture.get(name)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(
        Path(__file__).with_name("transformers.json").read_text(encoding="utf-8")
    )
    return table


def made_for(package: str) -> str:
    """Return the version that the facts are of."""
    return str(_table()["versions"][package])


@cache
def complete(package: str = "transformers") -> bool:
    """Whether the facts are of the installed version, so that what they lack isn't there."""
    try:
        return version(package).partition("+")[0] == made_for(package)
    except PackageNotFoundError:
        return True  # planned here, run elsewhere: the version that dslm is tested with


def names(what: str) -> list[str]:
    """`activations`, `optimizers` (torch's), `rope_types` or `trackers`."""
    found: list[str] = _table()[what]
    return found


def model_types() -> list[str]:
    """Return all model types."""
    return list(_table()["types"])


def model_type(name: str) -> ModelType | None:
    """Return a model type; None: transformers has none of this name."""
    row = _table()["types"].get(name)
    if row is None:
        return None
    return ModelType(
        name=name,
        heads=tuple(row["heads"]),
        code=frozenset(row.get("code", ())),
        names=row.get("names", {}),
        fields=_by_name(row.get("fields", {})),
    )


def arguments(kind: str) -> dict[str, str]:
    """The arguments of `transformers.TrainingArguments`, `trl.SFTConfig` or another of TRL's."""
    return _by_name(_table()["arguments"][kind])


def _by_name(by_kind: Mapping[str, str]) -> dict[str, str]:
    return {name: kind for kind, names in by_kind.items() for name in names.split()}


def is_of(value: object, kind: str, *, exact: bool) -> bool:
    """Return whether a value is of a kind such as `int|none`; a whole number is a number, too."""
    if kind == "any":
        return True
    kinds = kind.split("|")
    own = "none" if value is None else _KINDS.get(type(value))
    return own in kinds or (not exact and own == "int" and "float" in kinds)


def said(kind: str) -> str:
    """Return a kind in words."""
    return " or ".join(_SAID[part] for part in kind.split("|") if part in _SAID)
