"""Failures of real processes are diagnosed, shown in one panel, and shown again later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Error
from dslm.run.history import read_history
from tests.conftest import Dslm
from tests.support.kernel import reads_kernel_log

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
DATA_WORKER = """
import os
from torch.utils.data import DataLoader
class Data:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        os._exit(3)
for batch in DataLoader(Data(), num_workers=1):
    pass
"""
HOG = """
import os, pathlib, time
if os.environ["RANK"] == "1":
    pathlib.Path(os.environ["GROUP"], "cgroup.procs").write_text(str(os.getpid()))
    hog = [bytearray(1 << 20) for _ in range(300)]
time.sleep(60)
"""
UNKNOWN = """
import torch, torch.distributed
torch.distributed.init_process_group("gloo")
if torch.distributed.get_rank() == 1:
    try:
        {}["of the first"]
    except KeyError as failure:
        raise LookupError("nobody knows this one") from failure
torch.distributed.all_reduce(torch.ones(1))
"""


def failed(dslm: Dslm, folder: Path, script: str, ranks: int) -> tuple[Error, str]:
    """Launch a script that fails; its error event and what people were shown."""
    file = folder / "train.py"
    file.write_text(script)
    done = dslm("launch", str(file), "--num-gpus", str(ranks), "-o", "run")
    assert done.returncode == 1, done.stderr
    error = read_history(RunDirectory(folder / "run")).failure
    assert error is not None
    assert str(Path("run", error.log)) in done.stderr
    assert (folder / "run" / error.log).is_file()
    return error, done.stderr


def test_a_rank_that_is_killed_is_named_with_the_signal(dslm: Dslm, tmp_path: Path) -> None:
    error, shown = failed(dslm, tmp_path, KILLED, 2)
    assert (error.id, error.rank, error.retry) == ("killed", 1, True)
    assert "SIGKILL" in shown
    # the kernel was asked, and did not do it, or can't be asked
    assert "kernel" in shown or "cgroup" in shown


@reads_kernel_log
def test_a_rank_that_the_kernel_kills_for_memory_is_told_with_its_word(
    dslm: Dslm, tmp_path: Path, small_group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUP", str(small_group))
    error, shown = failed(dslm, tmp_path, HOG, 2)
    assert (error.id, error.rank, error.retry) == ("host-memory-killed", 1, False)
    assert "Killed process" in shown


def test_a_data_worker_that_crashes_is_told_and_how_to_see_more(warm: Dslm, tmp_path: Path) -> None:
    error, shown = failed(warm, tmp_path, DATA_WORKER, 1)
    assert error.id == "data-worker"
    assert "--set data.workers=0" in shown


def test_an_unknown_failure_is_shown_as_it_is_now_and_later(warm: Dslm, tmp_path: Path) -> None:
    error, shown = failed(warm, tmp_path, UNKNOWN, 2)
    assert (error.known, error.rank) == (False, 1)
    later = warm("runs", "show", "run").stdout
    for text in (shown, later):
        assert "unknown" in text
        assert "KeyError: 'of the first'" in text
        assert "rank 1" in text
    document = json.loads(warm("runs", "show", "run", "--json").stdout)
    assert document["status"] == "failed"
    assert document["failure"]["traceback"] == error.traceback
    assert document["failure"]["rank"] == 1
