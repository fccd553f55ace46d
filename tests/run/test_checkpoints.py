"""Which checkpoints are complete, sound, superseded."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dslm.run.checkpoints import (
    Checkpoint,
    complete_checkpoints,
    newest_sound,
    superseded,
    write_manifest,
)
from dslm.run.documents import CheckpointManifest


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
            path=Path(f"step-{i}"), step=i, world_size=1, zero_stage=0, eval_loss=loss, files={}
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
