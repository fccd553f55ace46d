"""`make soak`: kill trainings again and again with -9, anywhere, and look for what was lost.

    python -m benchmarks.soak [KILLS]

A run on two ranks is started with `dslm train`, and a process of it is killed at a random moment: a
rank, DeepSpeed's launcher or dslm itself. Then its ranks are started and killed many times more,
forked from a process that has the libraries loaded, so that a start takes a second instead of
ten; at last `dslm train` brings the run to its end. Its losses must be those of a run that nobody
disturbed, bit for bit, and each of its steps must have had the same samples; after every kill the
newest checkpoint must be sound and no older than before, and nothing may be left alive.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.commands import checked, training
from benchmarks.pages import Section
from dslm import environment
from dslm.host.network import free_port
from dslm.launch.control import Control
from dslm.lifecycle.resume import resume_point
from dslm.run.attempt import Attempt, path_word
from dslm.run.checkpoints import SavedLayout, newest_sound
from dslm.run.directory import RunDirectory
from dslm.run.documents import HostSlots
from dslm.run.events import Step
from dslm.run.history import read_history
from dslm.run.manifest import add_attempt
from dslm.run.samples import samples_of_steps
from dslm.run.summary import summarize
from tests.processes import command_line

DSLM = Path(sys.executable).parent / "dslm"
RANKS = 2
STEPS = 300
SETTINGS = {
    "duration.steps": STEPS, "checkpoint.every": 5, "log.every": 1, "log.samples": "true",
    "data.eval": 0, "data.max_documents": 60, "data.sequence_length": 64, "batch.global_size": 4,
    "batch.micro_size": 2, "model.architecture.hidden_size": 64,
    "model.architecture.intermediate_size": 128, "model.architecture.num_hidden_layers": 2,
    "model.architecture.num_attention_heads": 4, "evaluation.sample": "null",
}  # fmt: skip
KINDS = ((2, "interleaved"), (3, "hash"), (1, "range"), (0, "interleaved"))  # stage, sharding
_KILLS_PER_RUN = 25
_GONE_WITHIN = 10.0  # seconds; DESIGN.md, invariant 4
_TRAINING = 2.0  # a kill while training comes within so many seconds of the attempt's first step
_STARTING = 3.0  # any other within so many of the start
_BETWEEN = 0.2  # seconds at most between the ends of two ranks


@dataclass(slots=True)
class Tally:
    """What was seen, over all runs."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    finished: int = 0
    steps_redone: int = 0
    problems: list[str] = field(default_factory=list)
    slowest_end: float = 0.0

    def kill(self, who: str, training: bool) -> None:
        """Note a kill."""
        self.kills[who, "training" if training else "starting"] += 1
        print(f"kill {self.kills.total()}: {who}", flush=True)


def _argv(run: Path, stage: int, sharding: str) -> list[str]:
    given = {**SETTINGS, "parallel.zero_stage": stage, "data.sharding": sharding}
    return [*training(run, given), "--num-gpus", str(RANKS)]


def _curve(run: Path) -> list[float]:
    return [step.loss or 0.0 for step in read_history(RunDirectory(run)).steps]


def _steps_made(run: Path, since: float) -> int:
    """Steps of the attempt that began then."""
    return sum(step.time > since for step in read_history(RunDirectory(run)).all(Step))


def _wait_for_the_moment(run: Path, dice: random.Random, alive: object) -> bool:
    """Sleep until a random moment of an attempt; whether it was training by then."""
    began, training = time.time(), dice.random() < 0.7
    wait = dice.uniform(0, _TRAINING if training else _STARTING)
    while training and alive() and not _steps_made(run, began):  # type: ignore[operator]
        time.sleep(0.02)
    time.sleep(wait)
    return _steps_made(run, began) > 0


def _kill_dslm_train(argv: list[str], run: Path, dice: random.Random, tally: Tally) -> None:
    """Start `dslm train` and kill something of it."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    word = dice.choice(("dslm.worker.main", "deepspeed.launcher.launch", "dslm"))
    training = _wait_for_the_moment(run, dice, lambda: process.poll() is None)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    # what is run as `-m WORD`: the launcher's command has the ranks' module as an option
    target = next(
        (p for p in family[1:] if f"-m {word} " in " ".join(command_line(p)) + " "), family[0]
    )
    target.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=_GONE_WITHIN)
    tally.slowest_end = max(tally.slowest_end, time.monotonic() - killed)
    if alive:
        tally.problems.append(f"{run.name}: {len(alive)} processes outlived dslm")
    if process.returncode == 0:
        tally.problems.append(f"{run.name}: exit 0 after {word} was killed")
    who = {"dslm.worker.main": "a rank", "deepspeed.launcher.launch": "the launcher"}
    tally.kill("dslm itself" if target is family[0] else who[word], training)


def _fork_rank(attempt: Attempt, run: RunDirectory, rank: int) -> int:
    """Start a rank in a copy of this process; its pid."""
    pid = os.fork()
    if pid:
        return pid
    from dslm.worker import ranks
    from dslm.worker.train import train

    for name in environment.RANK_VARIABLES:
        os.environ[name] = str(rank if "RANK" in name else RANKS)
    this = ranks.join(["--run", path_word(run.path), "--attempt", str(attempt.number)])
    ranks.live(this, lambda: train(this))
    os._exit(0)


def _kill_ranks(
    run: RunDirectory, stage: int, dice: random.Random, control: Control, tally: Tally
) -> bool:
    """Go on with a run and kill its ranks; False when it was done before."""
    point = resume_point(
        run, layout=SavedLayout(world_size=RANKS, zero_stage=stage), log=run.path / "convert.log"
    )
    hosts = (("localhost", RANKS),)
    number = add_attempt(
        run,
        hosts=[HostSlots(host=name, slots=slots) for name, slots in hosts],
        resumed_from=point.path if point else None,
        step=point.step if point else 0,
    )
    attempt = Attempt(
        number=number,
        hosts=hosts,
        master_address="127.0.0.1",
        master_port=free_port(),
        control=control.address(),
        folder=str(run.path),
    )
    attempt.write(run)
    pids = [_fork_rank(attempt, run, rank) for rank in range(RANKS)]
    dice.shuffle(pids)
    left: list[int] = list(pids)

    def alive() -> bool:
        for pid in list(left):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.remove(pid)
        return len(left) == RANKS

    training = _wait_for_the_moment(run.path, dice, alive)
    ended = not alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        time.sleep(dice.uniform(0, _BETWEEN))
    if not ended:
        tally.kill("the ranks", training)
    return not ended


def _check_checkpoints(run: RunDirectory, newest: int, tally: Tally) -> int:
    """The newest checkpoint's step; notes what is wrong with it."""
    found, problems = newest_sound(run.checkpoints)
    step = found.step if found else 0
    if problems or step < newest:
        tally.problems.append(f"{run.path.name}: after step {newest} came {step}, {problems}")
    return step


def _one_run(folder: Path, number: int, kills: int, whole: Path, tally: Tally) -> None:
    """One run, killed so many times (or until it is done), then brought to its end."""
    stage, sharding = KINDS[number % len(KINDS)]
    dice, run = random.Random(number), RunDirectory(folder / f"run-{number}")
    control = Control([("localhost", RANKS)])  # for the ranks to report to; nobody listens
    argv = _argv(run.path, stage, sharding)
    newest = 0
    for kill in range(kills):
        if kill == 0 or not run.ds_config.is_file():
            _kill_dslm_train(argv, run.path, dice, tally)
        elif not _kill_ranks(run, stage, dice, control, tally):
            break
        newest = _check_checkpoints(run, newest, tally) if run.path.is_dir() else 0
    # the last kill may have come after the end
    if not (run.manifest.is_file() and summarize(run).status == "done"):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            tally.problems.append(f"{run.path.name}: {done.stderr[-500:]}")
            return
    if _curve(run.path) != _curve(whole):
        tally.problems.append(f"{run.path.name}: another loss curve")
    if samples_of_steps(run) != samples_of_steps(RunDirectory(whole)):
        tally.problems.append(f"{run.path.name}: other samples")
    made = len(read_history(run).all(Step))
    tally.steps_redone += made - STEPS
    tally.finished += 1
    shutil.rmtree(run.path)


def _report(tally: Tally, minutes: float) -> str:
    rows = [f"| {who} | {when} | {count} |" for (who, when), count in sorted(tally.kills.items())]
    verdict = (
        f"Problems: {len(tally.problems)}: {'; '.join(tally.problems)}"
        if tally.problems
        else "After every kill the newest checkpoint was sound and no older than before. Every run "
        "reached its end with the losses of an undisturbed one, bit for bit, and with the same "
        "samples in each step."
    )
    return "\n".join(
        [
            "## Killed anywhere, again and again\n",
            f"{tally.kills.total()} kills with -9 at "
            f"random moments, over {tally.finished} runs of {STEPS} steps on {RANKS} ranks (ZeRO "
            f"stages 0 to 3, a checkpoint every {SETTINGS['checkpoint.every']} steps), in "
            f"{minutes:.0f} minutes.\n",
            "| killed | while | times |",
            "|---|---|---|",
            *rows,
            f"\n{tally.steps_redone} steps were made a second time. After something of `dslm "
            f"train` was killed the last of its processes was gone after {tally.slowest_end:.1f} s "
            f"at most. {verdict}",
        ]
    )


def main() -> None:
    """Soak, print what was seen, write it down."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    section = Section("reliability.md", "make soak")
    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"OMP_NUM_THREADS": "1", environment.ACCELERATOR: "cpu"}
        whole = {}
        for stage, sharding in KINDS:
            whole[stage] = folder / f"whole-{stage}"
            argv = _argv(whole[stage], stage, sharding)
            checked(argv)
        import dslm.worker.train  # noqa: F401 - the forks have it from here

        number = 0
        while tally.kills.total() < wanted and not tally.problems:
            kills = min(_KILLS_PER_RUN, wanted - tally.kills.total())
            _one_run(folder, number, kills, whole[KINDS[number % len(KINDS)][0]], tally)
            number += 1
    section.write(_report(tally, (time.monotonic() - began) / 60))
    sys.exit(bool(tally.problems))


if __name__ == "__main__":
    main()
