"""A recipe's files are read once in a launch, whatever the number of hosts and attempts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from tests.cluster.namespaces import MakeHosts
from tests.lifecycle.many_hosts import TINY
from tests.support.warm import warm_dslm

pytestmark = pytest.mark.slow

SETS = [
    word
    for key, value in {**TINY, "duration.steps": 60, "checkpoint.every": 10}.items()
    for word in ("-s", f"{key}={value}")
]
# `dslm` itself, with every file that it opens for reading written down
COUNTING = """
import os, sys
opened = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".yaml"):
        os.write(opened, (os.path.realpath(arguments[0]) + "\\n").encode())
sys.addaudithook(hook)
from tests.support.warm import run_dslm
run_dslm(sys.argv[1], sys.argv[2:])
"""


def recipe_of(folder: Path) -> list[Path]:
    """A recipe that extends two files, which extend a third."""
    base, left, right, mine = (folder / f"{n}.yaml" for n in ("base", "left", "right", "mine"))
    base.write_text("extends: quickstart\n")
    left.write_text("extends: base.yaml\nseed: 5\n")
    right.write_text("extends: base.yaml\nlog: {every: 1}\n")
    mine.write_text("extends: [left.yaml, right.yaml]\n")
    return [base, left, right, mine]


def counting(*argv: str | Path) -> list[str]:
    """The command line of dslm that counts."""
    return [sys.executable, "-c", COUNTING, warm_dslm(own_process=True)[-1], *map(str, argv)]


def wait_for_step(run: Path, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not read_history(RunDirectory(run)).steps:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_one_load(folder: Path, started: subprocess.Popen[bytes], files: Sequence[Path]) -> None:
    assert started.wait(300) == 0
    assert len(read_history(RunDirectory(folder / "run")).restarts) == 1
    counts = Counter((folder / "opened").read_text().splitlines())
    assert {path.name: counts[str(path.resolve())] for path in files} == {
        path.name: 1 for path in files
    }


def test_on_this_machine_with_a_restart(tmp_path: Path) -> None:
    files = recipe_of(tmp_path)
    run = tmp_path / "run"
    started = subprocess.Popen(
        counting("train", files[-1], "-o", run, "--num-gpus", "2", "--max-restarts", "1", *SETS),
        env={**os.environ, "OPENED": str(tmp_path / "opened")},
        cwd=tmp_path,
    )
    wait_for_step(run, started)
    status = json.loads((run / "logs/attempt-1/rank-1.json").read_text())
    os.kill(status["pid"], signal.SIGKILL)
    check_one_load(tmp_path, started, files)


@pytest.mark.hosts
def test_on_two_hosts_with_a_restart(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(2)
    files = recipe_of(tmp_path)
    run = tmp_path / "run"
    started = cluster.head.start(
        counting("train", files[-1], "-o", run, "-H", cluster.hostfile(tmp_path, slots=1), *SETS),
        env={**os.environ, "OPENED": str(tmp_path / "opened")},
        cwd=tmp_path,
    )
    wait_for_step(run, started)
    cluster["w2"].kill_rank(1)
    check_one_load(tmp_path, started, files)
