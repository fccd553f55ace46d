"""The documents of a run directory keep their meaning over versions, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.errors import OptionError
from dslm.run.attempt import Attempt
from dslm.run.directory import RunDirectory
from dslm.run.documents import (
    FORMAT,
    CheckpointManifest,
    Document,
    Manifest,
    PlanFile,
    RankStatus,
    read_document,
    write_document,
)
from dslm.run.manifest import add_attempt, end_attempt, read_manifest

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"
DOCUMENTS: dict[str, type[Document]] = {
    "manifest.json": Manifest,
    "plan.json": PlanFile,
    "logs/attempt-2/attempt.json": Attempt,
    "logs/attempt-2/rank-1.json": RankStatus,
    "checkpoints/step-56/manifest.json": CheckpointManifest,
}


@pytest.mark.parametrize("file", DOCUMENTS)
def test_a_document_of_version_0_1_is_read_and_written_again(file: str, tmp_path: Path) -> None:
    found = read_document(DOCUMENTS[file], FROZEN / "stopped" / file)
    write_document(tmp_path / "again.json", found)
    assert read_document(DOCUMENTS[file], tmp_path / "again.json") == found
    assert json.loads((tmp_path / "again.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize("file", DOCUMENTS)
def test_a_later_format_is_refused_by_name_and_version(file: str, tmp_path: Path) -> None:
    content = json.loads((FROZEN / "stopped" / file).read_text())
    later = tmp_path / Path(file).name
    # whatever else has changed in it: that is not looked at
    later.write_text(json.dumps({"format": FORMAT + 1, "versions": {"dslm": "9.4.0"}}))
    with pytest.raises(OptionError, match=rf"by dslm 9\.4\.0, in format {FORMAT + 1}") as refused:
        read_document(DOCUMENTS[file], later)
    assert refused.value.where.file == later
    assert "9.4.0" in refused.value.hint
    assert content


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "7", '{"format": "x"}', '{"format": -1}', "\0\0\0", "[" * 9999]
)
def test_a_damaged_document_is_one_clear_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(text)
    with pytest.raises(OptionError, match="the manifest of the run is damaged"):
        read_document(Manifest, file)


def test_attempts_are_added_and_ended_in_the_manifest(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_document(run.manifest, read_document(Manifest, FROZEN / "stopped" / "manifest.json"))
    hosts = read_manifest(run).hosts
    number = add_attempt(run, hosts=hosts, resumed_from="checkpoints/step-56", step=56)
    assert number == 3
    end_attempt(run, number, status="failed", cause="the disk is full")
    last = read_manifest(run).attempts[-1]
    assert (last.step, last.world_size, last.status) == (56, 2, "failed")
    assert last.ended is not None
    assert last.ended >= last.started
