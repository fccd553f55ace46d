"""A training on real namespace hosts, under way: wait for a step, do harm, see what comes of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dslm.host.processes import kill
from dslm.run.attempt import path_word
from dslm.run.directory import RunDirectory
from dslm.run.events import Step
from dslm.run.history import E, read_history
from tests.cluster.namespaces import Cluster
from tests.conftest import DSLM
from tests.processes import HANGS
from tests.support.warm import warm_dslm

# A Llama of one layer: a step takes some hundredths of a second, so the time goes into starting.
TINY = {
    "duration.steps": 100000,
    "log.every": 1,
    "data.max_documents": 40,
    "data.sequence_length": 64,
    "model.architecture.hidden_size": 64,
    "model.architecture.intermediate_size": 128,
    "model.architecture.num_hidden_layers": 1,
    "model.architecture.num_attention_heads": 4,
    "batch.global_size": 4,
    "batch.micro_size": "auto",
    "checkpoint.every": 1000000,
    "evaluation.sample": "null",
    "schedule.name": "constant",
}


def losses_of(run: Path) -> dict[int, float | None]:
    """The loss of each step, as the last attempt that made it has it."""
    return {step.step: step.loss for step in read_history(RunDirectory(run)).steps}


class HostsRun:
    """`dslm train` on the hosts of a cluster, started from its head."""

    def __init__(
        self, cluster: Cluster, folder: Path, *options: str, warm: bool = False, **settings: Any
    ) -> None:
        """Start it; settings have `__` where keys have a dot. `warm`: its ranks are forked."""
        self.cluster = cluster
        self.run = folder / "run"
        given = {**TINY, **{key.replace("__", "."): value for key, value in settings.items()}}
        hostfile = cluster.hostfile(folder)
        program = warm_dslm(own_process=True) if warm else [str(DSLM)]
        argv = [*program, "train", "quickstart", "-H", str(hostfile), "-o", str(self.run)]
        argv += options
        for key, value in given.items():
            argv += ["-s", f"{key}={value}"]
        self._said = (folder / "said").open("w+")
        self.process = cluster.head.start(
            argv, cwd=folder, stdout=subprocess.DEVNULL, stderr=self._said
        )

    def events(self, kind: type[E]) -> tuple[E, ...]:
        """Events of a kind so far."""
        return read_history(RunDirectory(self.run)).all(kind)

    def wait(self, condition: Callable[[], bool], seconds: float = 240) -> float:
        """Wait until something is so; how long it took."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() - began < seconds, self.said()
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_for_step(self, step: int, attempt: int | None = None) -> None:
        """Wait until a step is finished, in that attempt or a later one."""
        self.wait(
            lambda: any(e.step >= step and e.attempt >= (attempt or 1) for e in self.events(Step))
        )

    def end(self, seconds: float = 300) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(seconds)

    def ranks_said(self) -> str:
        """What became of each rank of each attempt."""
        files = sorted(self.run.glob("logs/attempt-*/rank-*.json"))
        return "\n".join(f"{file.parent.name} {file.read_text()}" for file in files)

    def said(self) -> str:
        """What it has told people so far."""
        self._said.flush()
        return Path(self._said.name).read_text()

    def supervisor(self) -> psutil.Process:
        """The process of `dslm train` itself."""
        return self.cluster.head.child(self.process)

    def alive(self) -> list[str]:
        """Processes of this run on any host."""
        word = path_word(self.run)
        return [
            f"{host.name}: {line[:100]}"
            for host in self.cluster.world
            if host.is_on
            for line in host.command_lines(word).values()
        ]

    def losses(self) -> dict[int, float | None]:
        """The loss of each step, as the last attempt that made it has it."""
        return losses_of(self.run)

    def kill(self) -> None:
        """End everything, whatever state it is in."""
        # the supervisor first, or it would start another attempt
        if self.process.poll() is None:
            kill(psutil.Process(self.process.pid).children(recursive=True))
            self.process.wait(HANGS)
        for host in self.cluster.world:
            kill(host.find(path_word(self.run)))
