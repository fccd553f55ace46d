"""Locate the shipped folders: inside an installed wheel, or beside the package in a checkout.

Turns the name of a preset into a path, and reads dslm's own tables; knows nothing of what they say.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

_FOLDERS = ("recipes", "ds_configs", "hostfiles")
_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Return the folder `recipes`, `ds_configs` or `hostfiles` of this installation."""
    inside = _PACKAGE / "_shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


ANY_MODEL = "_model"  # the base of a model that is given by name or folder
PURPOSES = "purposes"  # below recipes/: what composes with any model, and trains nothing alone


def preset_names(folder: str, suffix: str) -> list[str]:
    """Names of all presets of a folder, sorted, without suffix; `_name` is a shared base."""
    found = _presets(folder, suffix).items()
    return sorted(n for n, path in found if n[0] != "_" and path.parent.name != PURPOSES)


def purpose_names() -> list[str]:
    """Names of the purposes that compose with any model, sorted."""
    return sorted(n for n, path in _presets("recipes", ".yaml").items() if is_purpose(path))


def is_purpose(path: Path) -> bool:
    """Return whether a recipe file is a purpose that ships with dslm."""
    return path.parent.name == PURPOSES and is_shipped(path)


def preset_path(folder: str, name: str, suffix: str) -> Path | None:
    """Return the file of a preset (or of a shared base, `_name`), or None when there is none."""
    return _presets(folder, suffix).get(name)


@cache
def _presets(folder: str, suffix: str) -> dict[str, Path]:
    return {path.stem: path for path in shipped_folder(folder).rglob(f"*{suffix}")}


def shipped_table(path: Path) -> Any:
    """Return what a YAML file of dslm's own holds; libyaml, where it is there, is far faster."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - both are safe


def is_shipped(path: Path) -> bool:
    """Return whether a file ships with dslm."""
    return any(path.is_relative_to(shipped_folder(name)) for name in _FOLDERS)
