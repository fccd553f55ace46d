"""Nothing that is killed looks like success, and nothing of a run outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dslm.run import timings
from dslm.run.attempt import path_word
from dslm.run.directory import RunDirectory
from dslm.run.events import Step
from dslm.run.history import read_history
from tests.conftest import DSLM
from tests.launch.test_control_port import STRANGE
from tests.processes import HANGS, command_line, is_alive
from tests.support.warm import warm_dslm

pytestmark = pytest.mark.slow


class Running:
    """A training of many steps, under way."""

    def __init__(self, folder: Path, *options: str, warm: bool = False, **more: Any) -> None:
        """Start it; settings have `__` where keys have a dot. `warm`: its ranks are forked."""
        self.run = folder / "run"
        settings: dict[str, Any] = {
            "duration.steps": 100000, "log.every": 1, "data.max_documents": 40,
            "data.sequence_length": 64, "model.architecture.hidden_size": 64,
            "model.architecture.num_hidden_layers": 1, "model.architecture.num_attention_heads": 4,
            "batch.global_size": 4, "batch.micro_size": "auto", "checkpoint.every": 1000000,
        }  # fmt: skip
        settings |= {key.replace("__", "."): value for key, value in more.items()}
        program = warm_dslm(own_process=True) if warm else [str(DSLM)]
        argv = [*program, "train", "quickstart", "-o", str(self.run), *options]
        for key, value in settings.items():
            argv += ["-s", f"{key}={value}"]
        self.process = subprocess.Popen(
            argv,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._wait(lambda: self._steps() >= min(2, settings["duration.steps"]), 240)

    def _steps(self) -> int:
        return len(read_history(RunDirectory(self.run)).all(Step))

    def _wait(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def rank_pid(self, rank: int) -> int:
        status = json.loads((self.run / f"logs/attempt-1/rank-{rank}.json").read_text())
        return int(status["pid"])

    def launcher(self) -> psutil.Process:
        return next(
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if "deepspeed.launcher.launch" in command_line(process)
        )

    def end(self, seconds: float = HANGS) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def left(self, seconds: float = 10) -> list[int]:
        """What is alive of it some seconds later: a process that was killed needs a moment."""
        deadline = time.monotonic() + seconds
        while (found := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def alive(self) -> list[int]:
        """Processes whose command line names this run, and its ranks (a fork has another)."""
        word = path_word(self.run)
        named = [p.pid for p in psutil.process_iter() if word in command_line(p)]
        statuses = self.run.glob("logs/attempt-*/rank-*.json")
        ranks = [int(json.loads(status.read_text())["pid"]) for status in statuses]
        return named + [pid for pid in ranks if pid not in named and _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a training; whatever becomes of it, nothing of it is left."""
    made: list[Running] = []

    def begin(*options: str, **settings: Any) -> Running:
        made.append(Running(tmp_path, *options, **settings))
        return made[-1]

    yield begin
    for started in made:
        if started.process.poll() is None:
            started.process.kill()
        for pid in started.alive():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    """By the real launcher: what is killed is of its processes."""
    return start()


@pytest.fixture
def warm(start: Callable[..., Running]) -> Running:
    """With forked ranks, where only the supervisor and the ranks count."""
    return start(warm=True)


def test_a_killed_rank_is_a_failed_run(warm: Running) -> None:
    os.kill(warm.rank_pid(1), signal.SIGKILL)
    code, said = warm.end()
    assert code == 1
    assert "rank 1" in said
    assert not warm.left()
    failure = read_history(RunDirectory(warm.run)).failure
    assert failure is not None
    assert (failure.id, failure.rank) == ("killed", 1)


def test_a_killed_launcher_is_a_failed_run(running: Running) -> None:
    running.launcher().send_signal(signal.SIGKILL)
    code, said = running.end()
    assert code == 1
    assert "launcher" in said
    assert not running.left()


def test_stopping_saves_a_checkpoint_and_ends_everything(warm: Running) -> None:
    warm.process.send_signal(signal.SIGTERM)  # what Ctrl-C does: the attack below
    code, said = warm.end()
    assert code == 130, said
    assert not warm.left()
    manifests = list((warm.run / "checkpoints").glob("step-*/manifest.json"))
    assert len(manifests) == 1
    assert not list((warm.run / "checkpoints").glob(".*"))


def test_nothing_outlives_a_killed_supervisor(running: Running) -> None:
    running.process.kill()
    assert not running.left(HANGS)


def test_a_stopped_rank_does_not_keep_the_run_from_ending(warm: Running) -> None:
    os.kill(warm.rank_pid(0), signal.SIGSTOP)
    warm.process.send_signal(signal.SIGINT)
    time.sleep(1)
    warm.process.send_signal(signal.SIGINT)  # the second insists
    code, _ = warm.end()
    assert code == 130
    assert not warm.left()


def test_a_training_goes_on_under_an_attack_on_its_control_port(warm: Running) -> None:
    control = json.loads((warm.run / "logs/attempt-1/attempt.json").read_text())["control"]
    place = (control["addresses"][0], control["port"])
    held = []
    for _ in range(3):
        for data in STRANGE.values():
            stranger = socket.create_connection(place, timeout=10)
            held.append(stranger)
            with suppress(OSError):  # it is closed while it talks
                stranger.sendall(data + b"\n")
        held += [socket.create_connection(place, timeout=10) for _ in range(150)]
    before = warm._steps()
    warm._wait(lambda: warm._steps() > before + 5)
    warm.process.send_signal(signal.SIGINT)
    code, said = warm.end()
    assert code == 130, said
    assert not warm.left()
    assert len(list((warm.run / "checkpoints").glob("step-*/manifest.json"))) == 1
    assert not list((warm.run / "checkpoints").glob(".*"))
    for stranger in held:
        stranger.close()


def test_a_long_step_that_computes_is_no_stall(start: Callable[..., Running]) -> None:
    """Each step takes longer than the watchdog waits for a rank that does nothing."""
    training = start(
        "--num-gpus", "1", warm=True, duration__steps=2, watchdog__timeout=2,
        batch__global_size=128, batch__micro_size=128, data__sequence_length=256,
        data__max_documents=600, data__eval=0, model__architecture__hidden_size=256,
        model__architecture__num_hidden_layers=4, evaluation__sample="null",
    )  # fmt: skip
    code, said = training.end(300)
    assert code == 0, said
    steps = read_history(RunDirectory(training.run)).steps
    assert (steps[-1].step_seconds or 0) > timings.SILENT_SECONDS


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_does_nothing_is_a_stall(start: Callable[..., Running], ranks: int) -> None:
    training = start("--num-gpus", str(ranks), warm=True, watchdog__timeout=4)
    os.kill(training.rank_pid(ranks - 1), signal.SIGSTOP)
    code, said = training.end()
    assert code == 1
    error = read_history(RunDirectory(training.run)).failure
    assert error is not None
    assert error.id == ("stalled-alone" if ranks == 1 else "stalled")
    assert error.rank == ranks - 1
    assert "each other" not in said
    assert ("the ranks" not in said) or ranks > 1
    assert not training.left()
