"""What is saved beside training is what the state was, with room in memory for a copy or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from dslm.worker.snapshot import SnapshotEngine


def _state() -> dict[str, Any]:
    weight = torch.arange(1000.0)
    return {"weight": weight, "twin": weight, "part": weight[10:20], "step": 3, "empty": None}


@pytest.mark.parametrize("room", [0, 2**40])
def test_training_may_go_on_before_what_was_saved_is_written(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()._replace(available=room)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    engine = SnapshotEngine(TorchCheckpointEngine(), local_ranks=2)
    for number in (1, 2):  # the second time in the buffers of the first, where there are some
        state, file = _state(), tmp_path / f"{number}.pt"
        engine.save(state, str(file))
        assert file.exists() == (room == 0), "without room for a copy it is written at once"
        state["weight"].fill_(-1)  # the next step
        assert engine.write() == [file]
        loaded = torch.load(file, weights_only=True)
        for name, value in _state().items():
            assert (
                torch.equal(loaded[name], value)
                if name in ("weight", "twin", "part")
                else (loaded[name] == value)
            )
        assert loaded["weight"].data_ptr() == loaded["twin"].data_ptr()
    assert engine.write() == []


def test_a_file_that_can_not_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    engine = SnapshotEngine(TorchCheckpointEngine(), local_ranks=1)
    engine.save(_state(), str(tmp_path / "no" / "such" / "folder.pt"))
    with pytest.raises((OSError, RuntimeError)):
        engine.write()
