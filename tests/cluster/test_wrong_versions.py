"""The catalogue of known wrong versions: whole, sourced, and exact at the ends of its ranges."""

from __future__ import annotations

import re

import pytest

from dslm.cluster.wrong_versions import (
    Setting,
    When,
    installed_release,
    installed_wrong,
    settings_of,
    wrong_versions,
)
from dslm.recipe.load import load_recipe

SOURCE = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(issues/\d+|pull/\d+|blob/\S+)")


def test_every_entry_says_what_goes_wrong_what_avoids_it_and_who_reported_it() -> None:
    entries = wrong_versions()
    assert len(entries) >= 15
    assert len({entry.id for entry in entries}) == len(entries)
    for entry in entries:
        assert SOURCE.fullmatch(entry.source), entry.id
        assert entry.first or entry.below, entry.id
        assert entry.wrong
        assert settings_of(entry), entry.id
        if "=" in entry.avoid:  # a setting that a recipe takes
            load_recipe("quickstart", [entry.avoid])


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("0.17.5", False),
        ("0.17.6", True),
        ("0.18.2+cu128", True),
        ("0.18.3", False),
        ("0.18.3rc1", False),
        ("1.0", False),
    ],
)
def test_a_range_holds_its_first_version_and_not_the_repaired_one(release: str, has: bool) -> None:
    entry = next(entry for entry in wrong_versions() if entry.id == "zero2-gradients")
    assert entry.has(release) is has


def test_all_conditions_of_an_entry_must_hold() -> None:
    when = When(stages=(2,), ranks=2, accumulates=True, deepspeed={"a.b": True})
    met = Setting(stage=2, precision="bf16", ranks=2, accumulates=True, deepspeed={"a.b": True})
    assert when.meets(met)
    for change in (
        Setting(stage=1, precision="bf16", ranks=2, accumulates=True, deepspeed={"a.b": True}),
        Setting(stage=2, precision="bf16", ranks=1, accumulates=True, deepspeed={"a.b": True}),
        Setting(stage=2, precision="bf16", ranks=2, deepspeed={"a.b": True}),
        Setting(stage=2, precision="bf16", ranks=2, accumulates=True),
    ):
        assert not when.meets(change)


def test_the_entries_of_other_versions_are_found_by_what_hosts_have() -> None:
    found = {entry.id for entry, _ in installed_wrong({"deepspeed": "0.18.2"})}
    assert "zero2-gradients" in found
    assert "zero0-bf16" not in found


def test_each_package_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def release(package: str) -> str:
        asked.append(package)
        return "0"

    monkeypatch.setattr("dslm.cluster.wrong_versions.version", release)
    installed_release.cache_clear()
    for _ in range(2):
        list(installed_wrong())
    assert sorted(asked) == sorted({entry.package for entry in wrong_versions()})
    installed_release.cache_clear()
