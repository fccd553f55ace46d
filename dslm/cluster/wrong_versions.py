"""Known wrong versions, `wrong_versions.yaml`: with them a training learns something else.

No error says so. An entry is a package, a range of versions, the recipes that meet it, and its
source. Knows no recipe: who asks says in a `Setting` what is trained. The checks before a launch
refuse what a recipe meets for certain; `dslm doctor` names all that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dslm.presets import shipped_table
from dslm.units import number_of

_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_LENGTH = 4  # numbers of a release that are compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is trained, as far as a wrong version cares."""

    stage: int
    precision: str
    ranks: int
    tensor: int = 1  # ranks that share layers
    offload: str = "none"
    accumulates: bool = False  # more than one micro batch a step
    clips: bool = False  # gradients, to a norm
    on_cpu: bool = False
    compile: bool = False
    liger: bool = False
    zeropp: bool = False
    pretrained: bool = False
    task: str = ""
    optimizer: str = ""
    model_type: str = ""
    deepspeed: Mapping[str, object] = field(default_factory=dict)  # dotted keys of the config


@dataclass(frozen=True, kw_only=True, slots=True)
class When:
    """The recipes that meet an entry: everything that is given must hold."""

    stages: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    ranks: int = 1  # at least
    tensor: int = 1  # at least
    offloads: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    accumulates: bool | None = None
    clips: bool | None = None
    on_cpu: bool | None = None
    compile: bool | None = None
    liger: bool | None = None
    zeropp: bool | None = None
    pretrained: bool | None = None
    deepspeed: Mapping[str, object] = field(default_factory=dict)

    def meets(self, setting: Setting) -> bool:
        """Return whether a recipe of this setting does."""
        among = (
            (self.stages, setting.stage),
            (self.precisions, setting.precision),
            (self.offloads, setting.offload),
            (self.tasks, setting.task),
            (self.optimizers, setting.optimizer),
            (self.model_types, setting.model_type),
        )
        flags = (
            (self.accumulates, setting.accumulates),
            (self.clips, setting.clips),
            (self.on_cpu, setting.on_cpu),
            (self.compile, setting.compile),
            (self.liger, setting.liger),
            (self.zeropp, setting.zeropp),
            (self.pretrained, setting.pretrained),
        )
        return (
            setting.ranks >= self.ranks
            and setting.tensor >= self.tensor
            and all(not given or found in given for given, found in among)
            and all(wanted is None or wanted == found for wanted, found in flags)
            and all(setting.deepspeed.get(k) == value for k, value in self.deepspeed.items())
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WrongVersion:
    """One entry; see the head of wrong_versions.yaml."""

    id: str
    package: str
    when: When
    wrong: str
    avoid: str  # a setting, as `--set` takes it, or a key
    source: str
    first: str = ""
    below: str = ""
    also: str = ""

    def has(self, release: str) -> bool:
        """Return whether a version of the package has the mistake."""
        found = release_numbers(release)
        return (not self.first or found >= release_numbers(self.first)) and (
            not self.below or found < release_numbers(self.below)
        )

    @property
    def way_out(self) -> str:
        """What avoids it."""
        setting = f"`--set {self.avoid}`" if "=" in self.avoid else f"another `{self.avoid}`"
        return (
            f"pip install '{self.package}>={self.below}', or {setting}" if self.below else setting
        )


@cache
def wrong_versions() -> tuple[WrongVersion, ...]:
    """Return the catalogue."""
    rows = shipped_table(Path(__file__).with_suffix(".yaml"))
    return tuple(
        WrongVersion(
            **{k: v for k, v in row.items() if k not in ("from", "below", "when")},
            first=str(row.get("from", "")),
            below=str(row.get("below", "")),
            when=When(
                **row["when"] | {k: tuple(v) for k, v in row["when"].items() if isinstance(v, list)}
            ),
        )
        for row in rows
    )


def installed_wrong(
    releases: Mapping[str, str] | None = None,
) -> Iterator[tuple[WrongVersion, str]]:
    """Find the entries that installed packages have, each with the version.

    Args:
        releases: versions by package; None: those of this environment.
    """
    release_of = installed_release if releases is None else releases.get
    for entry in wrong_versions():
        found = release_of(entry.package)
        if found is not None and entry.has(found):
            yield entry, found


def settings_of(entry: WrongVersion) -> str:
    """Say which recipes meet an entry, in the recipe's words."""
    when = entry.when
    flags = ("accumulates", "clips", "compile", "liger", "zeropp", "pretrained")
    many = (
        ("ZeRO stage", when.stages),
        ("precision", when.precisions),
        ("offload", when.offloads),
        ("task", when.tasks),
        ("optimizer", when.optimizers),
        ("model", when.model_types),
    )
    parts = [f"{name} {' or '.join(map(str, given))}" for name, given in many if given]
    parts += [f"{when.ranks} ranks or more"] if when.ranks > 1 else []
    parts += (
        [f"layers shared by {number_of(when.tensor, 'rank')} or more"] if when.tensor > 1 else []
    )
    parts += [f"{name}: {str(getattr(when, name)).lower()}" for name in flags
              if getattr(when, name) is not None]  # fmt: skip
    parts += [f"{key}: {str(value).lower()}" for key, value in when.deepspeed.items()]
    parts += (
        ["not on a CPU" if when.on_cpu is False else "on a CPU"] if when.on_cpu is not None else []
    )
    return ", ".join([*parts, *([entry.also] if entry.also else [])])


@cache
def installed_release(package: str) -> str | None:
    """Return the version of a package of this environment, if it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def release_numbers(release: str) -> tuple[int, ...]:
    """Return the release of a version, such as (0, 19, 8, 0) of `0.19.8+cu128`."""
    found = _RELEASE.match(release)
    numbers = tuple(int(part) for part in found[0].split(".")) if found else ()
    return (numbers + (0,) * _LENGTH)[:_LENGTH]
