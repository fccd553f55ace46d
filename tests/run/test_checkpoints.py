"""Which checkpoints are complete, sound, superseded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslm.errors import OptionError
from dslm.run.checkpoints import (
    MANIFEST,
    Checkpoint,
    SavedLayout,
    complete_checkpoints,
    newest_sound,
    superseded,
    write_manifest,
)
from dslm.run.documents import FORMAT, CheckpointManifest


def _write(folder: Path, step: int) -> Path:
    path = folder / f"step-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "tensors").write_bytes(b"x" * 100)
    write_manifest(path, CheckpointManifest(step=step, world_size=2, zero_stage=2))
    return path


def test_a_file_that_is_missing_short_or_extra_makes_it_incomplete(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _write(tmp_path, step)
    (tmp_path / "step-2" / "inner" / "tensors").unlink()
    (tmp_path / "step-3" / "inner" / "tensors").write_bytes(b"x" * 99)
    (tmp_path / "step-4" / "more").touch()
    assert [c.step for c in complete_checkpoints(tmp_path)] == [1]


def test_a_link_in_a_checkpoint_is_no_file_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 100)
    tensors = _write(tmp_path, 1) / "inner" / "tensors"
    tensors.unlink()
    tensors.symlink_to(tmp_path / "secret")
    assert complete_checkpoints(tmp_path) == []


def test_one_that_a_later_version_wrote_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    later = _write(tmp_path, 2) / MANIFEST
    later.write_text(json.dumps({"format": FORMAT + 1, "versions": {"dslm": "9.4.0"}}))
    for ask in (complete_checkpoints, newest_sound):
        with pytest.raises(OptionError, match=r"by dslm 9\.4\.0, in format") as refused:
            ask(tmp_path)
        assert refused.value.where.file == later


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 2}, {"step": "1"}, {"step": True}, {"step": None}, {"world_size": -1},
        {"zero_stage": []}, {"files": None}, {"files": []}, {"files": {"inner/tensors": 3}},
        {"files": {"inner/tensors": {}}}, {"files": {"../tensors": {"size": 100}}},
    ],
)  # fmt: skip
def test_a_manifest_that_says_nonsense_is_an_incomplete_checkpoint(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    path = _write(tmp_path, 1)
    manifest = path / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **wrong}))
    assert complete_checkpoints(tmp_path) == []
    assert newest_sound(tmp_path) == (None, ["step-1 is not complete"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 20_000])
def test_neither_is_one_that_can_not_be_read(tmp_path: Path, content: bytes) -> None:
    (_write(tmp_path, 1) / MANIFEST).write_bytes(content)
    assert complete_checkpoints(tmp_path) == []


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-foo", "step-", "step-01", "step--1", "step-1.old", "step-" + "9" * 30):
        (tmp_path / name).mkdir()
    assert newest_sound(tmp_path) == (None, [])


def test_a_flipped_bit_is_found_and_the_older_one_taken(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    newer = _write(tmp_path, 2)
    (newer / "inner" / "tensors").write_bytes(b"x" * 99 + b"y")
    found, problems = newest_sound(tmp_path)
    assert found is not None
    assert found.step == 1
    assert problems == ["step-2 is damaged: inner/tensors"]


@given(
    losses=st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=12),
    keep=st.integers(0, 5),
    keep_best=st.integers(0, 3),
)
def test_the_newest_and_the_best_stay(
    losses: list[float | None], keep: int, keep_best: int
) -> None:
    complete = [
        Checkpoint(
            path=Path(f"step-{i}"),
            step=i,
            layout=SavedLayout(world_size=1, zero_stage=0),
            eval_loss=loss,
            files={},
        )
        for i, loss in enumerate(losses)
    ]
    gone = {checkpoint.step for checkpoint in superseded(complete, keep, keep_best)}
    stay = [checkpoint for checkpoint in complete if checkpoint.step not in gone]
    assert stay[-1] is complete[-1]
    newest = {c.step for c in complete[-max(keep, 1) :]}
    assert newest <= {c.step for c in stay}
    known = sorted(loss for loss in losses if loss is not None)[:keep_best]
    assert len(stay) <= max(keep, 1) + keep_best
    if known:
        assert min(known) in [c.eval_loss for c in stay]
