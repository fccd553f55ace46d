"""What a checkpoint's pickles ask for is known without loading any."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._weights_only_unpickler import _get_allowed_globals

from dslm.run.pickles import _is_harmless, foreign_names, names_in


class _Call:
    def __init__(self, function: Any, *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def test_every_type_that_torch_takes_is_harmless() -> None:
    taken = list(_get_allowed_globals())
    assert len(taken) > 100
    assert [name for name in taken if not _is_harmless(name)] == []


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"w": torch.ones(2), "n": 1}, []),
        ({"random": numpy.random.default_rng(0).bit_generator.state, "w": [torch.float16]}, []),
        ({"random": numpy.random.get_state()}, []),
        ({"x": _Call(os.system, "true")}, ["posix.system"]),
        ({"x": [_Call(eval, "1"), _Call(exec, "1")]}, ["eval", "exec"]),
        ({"x": Path("a")}, ["PosixPath"]),
    ],
)
def test_names_are_found_and_nothing_is_called(
    tmp_path: Path, value: object, names: list[str], zipped: bool
) -> None:
    file = tmp_path / "states.pt"
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    found = foreign_names([file]).get(file, [])
    assert len(found) == len(names)
    assert all(name.endswith(end) for name, end in zip(found, names, strict=True))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "states.pt"
    file.write_bytes(pickle.dumps({"a": _Call(os.system, "true"), "b": set()}, protocol))
    assert [name for name in names_in(file) if "system" in name] == ["posix.system"]


def test_files_that_torch_does_not_load_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_bytes(pickle.dumps(_Call(os.system, "true")))
    assert foreign_names([file]) == {}


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.pt"
    file.write_bytes(content)
    names_in(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    names_in(file)
    file.write_bytes(file.read_bytes()[: len(content)])
    names_in(file)
