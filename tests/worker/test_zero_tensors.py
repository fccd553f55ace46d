"""What may be in a checkpoint's files, and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from dslm.errors import InputError
from dslm.worker.zero_tensors import _load


class _AsGetattr:
    """Pickled as the attribute of something."""

    def __init__(self, owner: object, name: str) -> None:
        self._asked = owner, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, self._asked


def test_the_member_of_an_enum_is_read_however_python_pickled_it(tmp_path: Path) -> None:
    file = tmp_path / "states.pt"
    torch.save({"stage": _AsGetattr(ZeroStageEnum, "weights"), "w": torch.ones(2)}, file)
    assert _load(file)["stage"] is ZeroStageEnum.weights
    torch.save({"stage": ZeroStageEnum.gradients}, file)
    assert _load(file)["stage"] is ZeroStageEnum.gradients


@pytest.mark.parametrize(
    ("owner", "name"),
    [("a string", "format"), (ZeroStageEnum, "__class__"), (ZeroStageEnum, "mro")],
)
def test_no_other_attribute_is_given(owner: object, name: str, tmp_path: Path) -> None:
    file = tmp_path / "states.pt"
    torch.save({"stage": _AsGetattr(owner, name)}, file)
    with pytest.raises(InputError, match="not a file of tensors"):
        _load(file)
