"""What was tested is pinned: dslm, all its extras, and everything they pull in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# What torch's build for CUDA needs beside its CPU build; torch itself says at which version.
OF_CUDA = ("nvidia-", "cuda-", "triton")


def _needed(name: str, extras: frozenset[str], seen: set[str]) -> Iterator[NormalizedName]:
    """Names of all packages that an installed one needs, and that are installed."""
    try:
        requirements = [Requirement(text) for text in distribution(name).requires or ()]
    except PackageNotFoundError:
        return  # needed on another platform only
    for requirement in requirements:
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras))
        key = f"{canonicalize_name(requirement.name)}{sorted(requirement.extras)}"
        if wanted and key not in seen:
            seen.add(key)
            yield canonicalize_name(requirement.name)
            yield from _needed(requirement.name, frozenset(requirement.extras), seen)


def _installed(name: str) -> Version | None:
    try:
        return Version(distribution(name).version)
    except PackageNotFoundError:
        return None


def test_every_package_is_pinned_at_the_version_that_is_tested() -> None:
    lines = CONSTRAINTS.read_text().splitlines()
    pins = {canonicalize_name(r.name): r for r in map(Requirement, lines[1:])}
    extras = frozenset(distribution("dslm").metadata.get_all("Provides-Extra") or ())
    needed = set(_needed("dslm", extras, set()))
    assert len(needed) > 60
    assert {"torch", "peft", "trl", "tensorboard", "pytest", "ruff"} <= needed
    needed = {name for name in needed if name in pins or not name.startswith(OF_CUDA)}
    assert not {name for name in needed if name not in pins}
    installed = {name: found for name in needed if (found := _installed(name)) is not None}
    assert len(installed) > 60  # all but what belongs to extras that the tests do without
    assert not {n: v for n, v in installed.items() if not pins[n].specifier.contains(v)}
