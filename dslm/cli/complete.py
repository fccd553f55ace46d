"""Shell completion: presets, keys and their values, runs, devices.

Words in, words out. The names of files are read, and for `--set` the schema; nothing heavier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

_RUNS = Path("runs")


def recipes(incomplete: str) -> list[str]:
    """Presets, and the recipe files of a folder that is named or is the current one."""
    from dslm.presets import preset_names

    return [*_starting(preset_names("recipes", ".yaml"), incomplete), *files(incomplete, ".yaml")]


def presets(incomplete: str) -> list[str]:
    """Presets that a recipe can extend."""
    from dslm.presets import preset_names

    return _starting(preset_names("recipes", ".yaml"), incomplete)


def purposes(incomplete: str) -> list[str]:
    """Purposes, one more behind each comma."""
    from dslm.presets import purpose_names

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(purpose_names(), last)]


def settings(incomplete: str) -> list[str]:
    """`KEY=` of a recipe and, behind it, the values that the key can have."""
    from dslm.recipe.findings import known_keys

    key, equals, value = incomplete.partition("=")
    if not equals:
        known = known_keys()
        sections = {parent for k in known if (parent := k.rpartition(".")[0])}
        return _starting((f"{k}=" for k in known if k not in sections), incomplete)
    return [f"{key}={choice}" for choice in _starting(_choices(key), value)]


def values_in_bash(environment: Mapping[str, str]) -> list[str] | None:
    """The values of `--set KEY=`, where bash asks for them; None: it asks for something else.

    Bash breaks words at `=` (COMP_WORDBREAKS, bash(1)), which Typer doesn't put together again, and
    takes for an answer what stands behind it.
    """
    if environment.get("_DSLM_COMPLETE") != "complete_bash":
        return None
    words = environment.get("COMP_WORDS", "").split()
    number = environment.get("COMP_CWORD", "")
    before = words[: int(number)] if number.isdigit() else []
    typed = words[len(before)] if len(before) < len(words) else ""
    if typed == "=":
        before, typed = [*before, "="], ""
    if len(before) < 3 or before[-1] != "=" or before[-3] not in ("--set", "-s"):
        return None
    return [word.partition("=")[2] for word in settings(f"{before[-2]}={typed}")]


def leave_values_open_in_bash() -> None:
    """Let bash put no space behind `KEY=`, in the script of completion that Typer installs."""
    from typer import _completion_shared as typers

    end = "    return 0\n"
    open_ended = '    [[ "${COMPREPLY[0]-}" == *= ]] && compopt -o nospace\n'
    script = typers._completion_scripts["bash"]
    if open_ended not in script:
        typers._completion_scripts["bash"] = script.replace(end, open_ended + end)


def launchers(incomplete: str) -> list[str]:
    """Ways to start on hosts."""
    from dslm.launch.sites import SITES

    return _starting(SITES, incomplete)


def devices(incomplete: str) -> list[str]:
    """Kinds of devices that a plan can be made for."""
    from dslm.cluster.devices import DEVICES

    return _starting((*DEVICES, "cpu"), incomplete)


def tasks(incomplete: str) -> list[str]:
    """Tasks of a recipe."""
    return _starting(_choices("task"), incomplete)


def runs(incomplete: str) -> list[str]:
    """Runs below `runs/` by name, the newest first, or the folders of a path."""
    if "/" in incomplete:
        return files(incomplete, "")
    try:
        found = [path for path in _RUNS.iterdir() if (path / "manifest.json").is_file()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return _starting((path.name for path in found), incomplete)


def files(incomplete: str, suffix: str) -> list[str]:
    """Files of a suffix and folders whose path begins with what is typed; "": folders alone."""
    folder, slash, _ = incomplete.rpartition("/")
    try:
        there = sorted(Path(folder + slash or ".").iterdir())
    except OSError:
        return []
    names = [
        f"{folder}{slash}{path.name}" + ("/" if path.is_dir() else "")
        for path in there
        if (path.is_dir() or (suffix and path.suffix == suffix)) and path.name[0] != "."
    ]
    return _starting(names, incomplete)


def _choices(key: str) -> list[str]:
    """The words that a key of a recipe takes: of an enumeration, or true and false."""
    from pydantic import BaseModel

    from dslm.recipe.schema import Recipe

    section: object = Recipe
    for part in key.split("."):
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            return []
        kind = fields[part].annotation
        members = [kind, *get_args(kind)]
        sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        section = sections[0] if sections else kind
    return list(dict.fromkeys(_words(section)))


def _words(kind: object) -> Iterable[str]:
    if kind is bool:
        yield from ("true", "false")
    for member in get_args(kind):
        if isinstance(member, str | int) and not isinstance(member, bool):
            yield str(member)
        else:
            yield from _words(member)


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
