"""Texts that are held to files: read a changed one, then write it with `--update-golden`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from dslm.errors import DslmError, Finding

GOLDEN = Path(__file__).parents[1] / "golden"
SameAs = Callable[[str, str], None]


def make_same_as(config: pytest.Config) -> SameAs:
    """Return the body of the fixture `same_as`: `same_as("findings/lint.txt", text)`."""

    def same_as(name: str, text: str) -> None:
        file = GOLDEN / name
        if config.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8"), "--update-golden writes it, if it is right"

    return same_as


def whole(found: DslmError | Iterable[Finding]) -> str:
    """Everything that an error or findings tell, a line each: kind, place, message, hint."""
    if isinstance(found, DslmError):
        kind = type(found).__name__
        first = Finding(message=found.message, where=found.where, hint=found.hint, severity=kind)
        found = [first, *found.findings]
    lines = []
    for one in found:
        kind = f"{one.severity} [{one.rule}]" if one.rule else one.severity
        place = f" {one.where}:" if str(one.where) else ""
        lines += [f"{kind}{place} {one.message}", *([f"  {one.hint}"] if one.hint else [])]
    return "".join(f"  {line}\n" for line in lines)
