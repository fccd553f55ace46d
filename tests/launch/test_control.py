"""The control channel: what a rank says arrives, and its end is told from its host's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dslm.launch.control import Control
from dslm.run.attempt import Attempt, path_of_word, path_word, read_attempt
from dslm.run.directory import RunDirectory
from dslm.run.endings import Loss
from dslm.run.words import EndNow, ShowStacks
from tests.processes import HANGS

RANK = """
import sys, time
from pathlib import Path
from dslm.run.attempt import read_attempt
from dslm.run.directory import RunDirectory
from dslm.run.endings import report_of
from dslm.run.words import Phase
from dslm.worker.guard import Guard
guard = Guard(read_attempt(RunDirectory(Path(sys.argv[1])), 1), 0)
guard.note(phase=Phase.TRAINING, step=7, work=0.5)
time.sleep(60 if sys.argv[2] == "stay" else 2)
guard.end(3, report_of(ValueError("as asked")))
"""


@pytest.fixture
def control() -> Iterator[Control]:
    with Control([("w1", 1)]) as listening:
        yield listening


def start(control: Control, folder: Path, how: str) -> subprocess.Popen[bytes]:
    run = RunDirectory(folder)
    Attempt(
        number=1,
        hosts=(("w1", 1),),
        master_address="127.0.0.1",
        master_port=1,
        control=control.address(),
        folder="/",
    ).write(run)
    return subprocess.Popen([sys.executable, "-c", RANK, str(folder), how])


def until(control: Control, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline
        control.poll(0.1)


def test_a_rank_says_how_far_it_is_and_how_it_ended(control: Control, tmp_path: Path) -> None:
    process = start(control, tmp_path, "end")
    until(control, lambda: 0 in control.ranks and control.ranks[0].exit_code is not None)
    rank = control.ranks[0]
    assert (rank.host, rank.phase, rank.step, rank.work_seconds) == ("w1", "training", 7, 0.5)
    assert rank.exit_code == 3
    assert rank.report is not None
    assert rank.report.line == "ValueError: as asked"
    assert process.wait(HANGS) == 0


def test_a_killed_rank_is_lost_at_once(control: Control, tmp_path: Path) -> None:
    process = start(control, tmp_path, "stay")
    until(control, lambda: 0 in control.ranks)
    process.kill()
    until(control, lambda: control.ranks[0].lost is not None)
    assert control.ranks[0].lost == Loss.PROCESS
    process.wait(HANGS)


def test_a_rank_shows_its_stacks_and_ends_when_told(control: Control, tmp_path: Path) -> None:
    process = start(control, tmp_path, "stay")
    until(control, lambda: 0 in control.ranks)
    control.send(ShowStacks())
    until(control, lambda: control.ranks[0].stacks is not None)
    assert "MainThread" in str(control.ranks[0].stacks)
    control.send(EndNow())
    assert process.wait(HANGS) == 1


def test_a_rank_ends_itself_when_the_supervisor_is_gone(tmp_path: Path) -> None:
    with Control([("w1", 1)]) as control:
        process = start(control, tmp_path, "stay")
        until(control, lambda: 0 in control.ranks)
    assert process.wait(HANGS) == 1


def test_the_attempts_file_is_for_nobody_else_and_reads_back(
    control: Control, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    attempt = Attempt(
        number=2,
        hosts=(("w1", 2), ("w2", 1)),
        master_address="10.0.0.1",
        master_port=29500,
        control=control.address(),
        folder="/home",
        environment={"A": "1"},
        host_environment={"w2": {"B": "2"}},
        hosts_without_run_dir=("w2",),
        arguments=("--x",),
    )
    attempt.write(run)
    assert read_attempt(run, 2) == attempt
    assert run.attempt(2).stat().st_mode & 0o077 == 0
    assert [attempt.host_of(rank) for rank in range(3)] == ["w1", "w1", "w2"]
    assert attempt.environment_of(2) == {"A": "1", "B": "2"}
    assert json.loads(run.attempt(2).read_text())["hosts"] == [["w1", 2], ["w2", 1]]


@pytest.mark.parametrize("path", ["/a b", "/$(x);'\"`\n", "/ü/日本", "/"])
def test_a_path_is_one_word_for_every_shell(path: str) -> None:
    word = path_word(Path(path))
    assert word.replace("-", "").replace("_", "").isalnum()
    assert path_of_word(word) == Path(path)
