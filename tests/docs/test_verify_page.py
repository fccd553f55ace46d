"""docs/verify.md names every known wrong version and every planted fault."""

from __future__ import annotations

from pathlib import Path

from dslm.cluster.wrong_versions import wrong_versions
from tests.worker.planted import FAULTS

PAGE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")


def test_every_known_wrong_version_is_on_the_page_with_its_source() -> None:
    for entry in wrong_versions():
        assert f"| `{entry.id}` |" in PAGE
        assert entry.source in PAGE


def test_every_planted_fault_is_on_the_page_with_what_names_it() -> None:
    assert len(FAULTS) >= 20
    for name, fault in FAULTS.items():
        assert f"| {name} | {fault.kind}" in PAGE


def test_no_example_is_missing() -> None:
    assert "@@" not in PAGE
