"""docs/verify.md names every known wrong version and every planted fault."""

from __future__ import annotations

from pathlib import Path

from dslm.cluster.wrong_versions import wrong_versions
from tests.worker.planted import FAULTS
from tests.worker.test_loading import CASES

PAGE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")


def test_every_known_wrong_version_is_on_the_page_with_its_source() -> None:
    for entry in wrong_versions():
        assert f"| `{entry.id}` |" in PAGE
        assert entry.source in PAGE


def test_every_planted_fault_is_on_the_page_with_what_named_it() -> None:
    assert len(FAULTS) >= 20
    rows = {line.split(" | ")[0]: line for line in PAGE.splitlines() if line.startswith("| ")}
    for name, fault in FAULTS.items():
        found = rows[f"| {name}"].split(" | ")[2]
        assert found.startswith(f"{fault.kind}: ")
        assert fault.names in found


def test_no_layout_that_must_pass_was_an_alarm() -> None:
    table = PAGE.partition("<!-- layouts")[2].partition("<!-- end of layouts")[0]
    rows = [line for line in table.splitlines() if line.startswith("| quickstart")]
    assert len(rows) >= 25
    assert not [row for row in rows if "alarm" in row]


def test_every_way_in_which_weights_are_not_there_is_on_the_page() -> None:
    words = " ".join(PAGE.split())
    assert not [name for name in CASES if f" {name}" not in words]


def test_no_example_is_missing() -> None:
    assert "@@" not in PAGE
