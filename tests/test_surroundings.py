"""A test finds variables and the folder as the session began with them, whatever ran before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path.cwd()
os.environ["DSLM_TEST_COLLECTED"] = "by importing this module, as torch and DeepSpeed set some"


@pytest.mark.parametrize("turn", ["one", "and another"])
def test_what_a_test_sets_is_gone_in_the_next(turn: str, tmp_path: Path) -> None:
    assert not [name for name in os.environ if name.startswith("DSLM_TEST_")]
    assert os.environ["PATH"] != turn
    assert Path.cwd() == HERE
    os.environ["DSLM_TEST_LEFT"] = os.environ["PATH"] = turn
    os.chdir(tmp_path)
