"""Tensors of any kind come out of a file as they went in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dslm.worker import tensor_files
from dslm.worker.portable import Tensors, write_tensors

TENSORS = {
    "fp32": torch.randn(5, 7),
    "bf16": torch.randn(3, 4).to(torch.bfloat16),
    "fp64": torch.randn(2, dtype=torch.float64),
    "a number": torch.tensor(3),
    "nothing": torch.randn(0, 4),
    "flags": torch.tensor([True, False]),
    "transposed": torch.randn(4, 6).t(),
    "a part of another": torch.randn(9, 3)[2:5],
    "bytes": torch.arange(9, dtype=torch.uint8),
}


@pytest.mark.parametrize("piece", [2**24, 4])
def test_tensors_are_read_as_they_were_written(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "_PIECE", piece)
    write_tensors(tmp_path / "kept", TENSORS.items())
    kept = Tensors(tmp_path / "kept")
    assert set(kept.names) == set(TENSORS)
    for name, value in TENSORS.items():
        found = kept.read(name)
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
    assert set(dict(kept.mapped())) == set(TENSORS)
