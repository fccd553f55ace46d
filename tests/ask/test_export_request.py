"""A checkpoint that is exported while its run trains on."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from dslm.ask.export import ExportRequest, export_request, held_request
from dslm.errors import OptionError

RUN = Path(__file__).parents[1] / "data" / "run-0.1" / "done"


def _request(output: Path) -> ExportRequest:
    return export_request(
        RUN, step=None, merge=False, dtype=None, output=output, push_to_hub=None, trust=False
    )


def test_one_that_the_run_has_removed_meanwhile_is_chosen_anew(tmp_path: Path) -> None:
    there = _request(tmp_path / "model")
    gone = replace(there, checkpoint=replace(there.checkpoint, path=tmp_path / "step-1"))
    chosen = iter([gone, gone, there])
    with ExitStack() as holds:
        assert held_request(lambda: next(chosen), holds) is there


def test_one_that_can_not_be_read_is_said(tmp_path: Path) -> None:
    there = _request(tmp_path / "model")
    copy = tmp_path / "step-1"
    shutil.copytree(there.checkpoint.path, copy)
    (copy / "manifest.json").unlink()
    broken = replace(there, checkpoint=replace(there.checkpoint, path=copy))
    with ExitStack() as holds, pytest.raises(OptionError, match="can't be read any more"):
        held_request(lambda: broken, holds)
