"""A run has one owner at a time, on any host: a second training of it is refused or takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dslm.run import events
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from dslm.run.lock import owner_of
from tests.cluster.namespaces import Cluster, make_hosts
from tests.conftest import DSLM, Dslm
from tests.processes import HANGS
from tests.support.warm import warm_dslm

pytestmark = pytest.mark.slow
CORPUS = Path(__file__).parents[1] / "data" / "run-0.1"


def argv_of(run: Path, *more: str) -> list[str]:
    """A training of many tiny steps on warm ranks: it goes on until stopped."""
    return [
        *warm_dslm(own_process=True), "train", str(CORPUS / "tiny.yaml"), "-o", str(run), *more,
        "-s", "duration.steps=100000",
        "-s", "schedule.name=constant", "-s", "checkpoint.every=50", "-s", "log.samples=false",
        "-s", f"data.train={CORPUS / 'items.jsonl'}",
    ]  # fmt: skip


def wait(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(run: Path) -> tuple[events.Step, ...]:
    return read_history(RunDirectory(run)).all(events.Step)


def checkpoints(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step-*"))


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training of tmp_path/run that has made steps and a checkpoint."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        argv_of(run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        wait(lambda: checkpoints(run) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            process.wait(HANGS)


def test_a_second_training_is_refused_at_once_and_told_by_whom(
    warm: Dslm, training: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    before = (run / "manifest.json").read_text()
    for more in ((), ("--resume",), ("--force",)):
        second = subprocess.run(argv_of(run, *more), capture_output=True, text=True, timeout=HANGS)
        assert second.returncode == 2, second.stderr
        assert f"process {training.pid} on {os.uname().nodename}, since 20" in second.stderr
        for way in ("dslm runs watch", "dslm runs stop", "-o DIR"):
            assert way in second.stderr
    assert (run / "manifest.json").read_text() == before
    assert training.poll() is None
    listed = json.loads(warm("runs", "show", str(run), "--json").stdout)
    assert str(training.pid) in listed["owner"]
    # a checkpoint is exported beside it, and stays until that is done
    exported = warm("export", str(run), "-o", "model", "--json")
    assert exported.returncode == 0, exported.stderr
    stopped = warm("runs", "stop", str(run))
    assert "asked run to stop" in stopped.stderr
    assert training.wait(HANGS) == 130
    assert owner_of(run) is None
    assert not (run / "lock").exists()
    assert "run is already stopped" in warm("runs", "stop", str(run)).stderr


def test_a_training_whose_supervisor_was_killed_is_taken_over_loudly(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training.kill()
    training.wait()
    assert owner_of(run) is None
    second = subprocess.Popen(
        argv_of(run, "--resume"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        wait(lambda: {step.attempt for step in steps(run)} == {1, 2} or second.poll() is not None)
        owner = owner_of(run)
        assert owner is not None
        assert owner.pid == second.pid
    finally:
        second.send_signal(signal.SIGINT)
        _, said = second.communicate(timeout=HANGS)
    assert f"process {training.pid} on {os.uname().nodename}" in said
    assert "has died" in said
    firsts = [step.step for step in steps(run) if step.attempt == 2]
    assert min(firsts) > 1, "it began again"


def test_of_two_that_start_together_one_trains(tmp_path: Path) -> None:
    run = tmp_path / "run"
    both = [
        subprocess.Popen(argv_of(run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    wait(lambda: any(process.poll() is not None for process in both))
    loser = next(process for process in both if process.poll() is not None)
    winner = next(process for process in both if process is not loser)
    assert loser.returncode == 2
    assert f"process {winner.pid} on" in loser.communicate()[1]
    wait(lambda: steps(run))
    winner.send_signal(signal.SIGINT)
    winner.communicate(timeout=HANGS)
    assert read_history(RunDirectory(run)).attempts == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for make in make_hosts(lambda: tmp_path_factory.mktemp("hosts")):
        yield make(2)


@pytest.mark.hosts
def test_on_two_hosts_the_second_is_refused_and_a_dead_one_taken_over(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    w1, w2 = cluster.hosts
    first = w1.start(argv_of(run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait(lambda: checkpoints(run) or first.poll() is not None)
    assert first.poll() is None, first.communicate()[1]
    refused = w2.run(argv_of(run))
    assert refused.returncode == 2, refused.stderr
    assert "on w1, since 20" in refused.stderr
    stopped = w2.run([str(DSLM), "runs", "show", str(run)])
    assert "on w1, since 20" in stopped.stdout
    w1.power_off()
    wait(lambda: owner_of(run) is None)
    second = w2.start(
        argv_of(run, "--resume"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait(lambda: {step.attempt for step in steps(run)} == {1, 2} or second.poll() is not None)
    assert second.poll() is None, second.communicate()[1]
    w2.child(second).send_signal(signal.SIGINT)
    _, said = second.communicate(timeout=HANGS)
    assert "on w1, since 20" in said
    assert "has died" in said
