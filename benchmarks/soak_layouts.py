"""Kill trainings with -9 again and again, and go on in another layout each time.

    python -m benchmarks.soak_layouts [KILLS] [--minutes N]

Each life of a run is `dslm train` in a layout that differs from the one before (the stage, the
number of ranks, whether ranks share layers or sequences), its ranks forked from a process that has
the libraries loaded; a rank or dslm itself is killed at a random moment. When a run has come to its
end another one begins, until there were so many kills. Each step must have had the samples that it
has in an undisturbed run, each of them once; the losses may differ by what undisturbed runs in
different layouts do. It goes on where it was cut off, in build/soak-layouts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil

from benchmarks.commands import training
from benchmarks.pages import Section
from benchmarks.resumes import Layout, curve, off_by
from dslm.files import append_line
from dslm.run.checkpoints import newest_sound
from dslm.run.directory import RunDirectory
from dslm.run.events import Convert, Step
from dslm.run.history import read_history
from dslm.run.samples import samples_of_steps
from dslm.run.summary import summarize
from tests.support.warm import warm_dslm

FOLDER = Path(__file__).parents[1] / "build" / "soak-layouts"
STEPS, BATCH = 120, 8
SETTINGS = {
    "duration.steps": STEPS, "checkpoint.every": 5, "log.every": 1, "log.samples": "true",
    "data.eval": 0, "data.max_documents": 60, "data.sequence_length": 64,
    "batch.global_size": BATCH, "batch.micro_size": 2, "model.architecture.hidden_size": 64,
    "model.architecture.intermediate_size": 128, "model.architecture.num_hidden_layers": 2,
    "model.architecture.num_attention_heads": 4, "evaluation.sample": "null",
    "optimizer.lr": 0.001, "precision": "fp32",
}  # fmt: skip
# the first of a run: under stage 3 transformers draws the initial weights in another order
FIRST = (Layout(2, 1), Layout(1, 0), Layout(4, 2), Layout(2, 1, "tensor"), Layout(2, 2, "sequence"))
LAYOUTS = (
    *FIRST, Layout(2, 0), Layout(2, 2), Layout(1, 2), Layout(2, 3), Layout(4, 3), Layout(1, 3),
    Layout(4, 1, "tensor"), Layout(4, 3, "sequence"),
)  # fmt: skip
_TRAINING = 2.5  # a kill while training comes within so many seconds of the life's first step
_STARTING = 4.0  # any other within so many of the start
_GONE_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill: of which run, in which layout, whom, and at which step (0: before the first)."""

    run: int
    layout: str
    who: str
    step: int
    problem: str = ""


class Soak:
    """The kills so far, on disk."""

    def __init__(self, program: Sequence[str]) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._program = program
        self._file = FOLDER / "kills.jsonl"
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self.kills = [Kill(**json.loads(line)) for line in lines]

    def argv(self, run: Path, layout: Layout) -> list[str]:
        """The command of a life."""
        return training(run, {**SETTINGS, **layout.settings}, program=self._program)

    def kill(self) -> None:
        """Let a run live once more, and kill it; or let it come to its end."""
        number = self.kills[-1].run if self.kills else 0
        while _is_done(FOLDER / f"run-{number}"):
            number += 1
        run, dice = FOLDER / f"run-{number}", random.Random(len(self.kills))
        new = not RunDirectory(run).ds_config.is_file()
        last = self.kills[-1].layout if self.kills and not new else ""
        layout = dice.choice([each for each in (FIRST if new else LAYOUTS) if str(each) != last])
        before, problems = newest_sound(run / "checkpoints")
        process = subprocess.Popen(
            self.argv(run, layout), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        began = time.time()
        _wait(run, process, dice)
        if process.poll() is not None:
            if process.returncode:
                self._note(Kill(number, str(layout), "nobody", 0, f"exit {process.returncode}"))
            return
        who = _kill(run, process, dice, began)
        step = max((s.step for s in _steps(run) if s.time > began), default=0)
        after, problems = newest_sound(run / "checkpoints") if run.is_dir() else (None, [])
        lost = before is not None and (after is None or after.step < before.step)
        problem = "; ".join([*problems, *(["an older checkpoint"] if lost else [])])
        self._note(Kill(number, str(layout), who, step, problem))

    def _note(self, kill: Kill) -> None:
        self.kills.append(kill)
        append_line(self._file, json.dumps({n: getattr(kill, n) for n in Kill.__slots__}))
        print(f"kill {len(self.kills)}: {kill}", flush=True)

    def finish(self, run: Path, layout: Layout) -> None:
        """Bring a run to its end."""
        if not _is_done(run):
            done = subprocess.run(self.argv(run, layout), capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{run.name}: {done.stderr[-800:]}")


def _is_done(run: Path) -> bool:
    return RunDirectory(run).manifest.is_file() and summarize(RunDirectory(run)).status == "done"


def _steps(run: Path) -> tuple[Step, ...]:
    return read_history(RunDirectory(run)).all(Step)


def _wait(run: Path, process: subprocess.Popen[Any], dice: random.Random) -> None:
    """Sleep until a random moment of a life: most while it trains."""
    began, training = time.time(), dice.random() < 0.8
    deadline = began + 120
    while training and process.poll() is None and time.time() < deadline:
        if any(step.time > began for step in _steps(run)):
            break
        time.sleep(0.05)
    time.sleep(dice.uniform(0, _TRAINING if training else _STARTING))


def _kill(run: Path, process: subprocess.Popen[Any], dice: random.Random, began: float) -> str:
    """Kill dslm or one of the ranks of this life, and wait until all of it is gone."""
    files = [f for f in run.glob("logs/attempt-*/rank-*.json") if f.stat().st_mtime > began]
    pids = [json.loads(file.read_text())["pid"] for file in files]
    family = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    if family and dice.random() < 0.7:
        who, target = "a rank", dice.choice(family).pid
    else:
        who, target = "dslm", process.pid
    os.kill(target, signal.SIGKILL)
    process.wait(60)
    _, alive = psutil.wait_procs(family, timeout=_GONE_WITHIN)
    return who if not alive else f"{who}, and {len(alive)} ranks stayed"


def report(soak: Soak) -> str:
    """Compare each run with an undisturbed one."""
    whole = [FOLDER / f"whole-{number}" for number in range(len(FIRST))]
    for run, layout in zip(whole, FIRST, strict=True):
        soak.finish(run, layout)
    bound = max(off_by(curve(a), curve(b)) for a, b in combinations(whole, 2))
    samples = samples_of_steps(RunDirectory(whole[0]))
    off, problems = [], [kill for kill in soak.kills if kill.problem or "stayed" in kill.who]
    lost = redone = converted = 0
    for number in range(soak.kills[-1].run + 1):
        run = FOLDER / f"run-{number}"
        soak.finish(run, LAYOUTS[number % len(LAYOUTS)])
        found = samples_of_steps(RunDirectory(run))
        places = [place for step in found.values() for place in step]
        lost += found != samples or len({*places}) != STEPS * BATCH
        off.append(min(off_by(curve(run), curve(each)) for each in whole))
        redone += len(_steps(run)) - STEPS
        converted += len(read_history(RunDirectory(run)).all(Convert))
    kills = soak.kills
    who = ", ".join(
        f"{sum(name in kill.who for kill in kills)} of {name}" for name in ("a rank", "dslm")
    )
    verdict = (
        f"**Problems:** {problems}, {lost} runs with other samples."
        if problems or lost
        else "Each sample was learnt exactly once, in the step where it is in an undisturbed run; "
        "after every kill the newest checkpoint was sound and no older than before, and nothing "
        "was left alive."
    )
    return "\n".join([
        "## Killed, and continued in another layout\n",
        f"{len(kills)} kills with -9 at random moments ({who}; {sum(k.step > 0 for k in kills)} "
        f"while training), over {len(off)} runs of {STEPS} steps in fp32 with a checkpoint every "
        f"{SETTINGS['checkpoint.every']}; each life in another layout than the one before, of "
        f"{len(LAYOUTS)}: ZeRO 0 to 3, layers or sequences shared by two, on 1, 2 and 4 ranks. "
        f"{converted} checkpoints were converted, {redone} steps made again. {verdict}\n",
        f"The losses of the runs are off those of an undisturbed one by {max(off):.1e} at most; "
        f"undisturbed runs in {len(FIRST)} layouts differ by up to {bound:.1e}.",
    ])  # fmt: skip


def main() -> None:
    """Kill so many times, in all; write the section once they are made."""
    parser = argparse.ArgumentParser(description="Kills with a change of layout.")
    parser.add_argument("kills", nargs="?", type=int, default=30)
    parser.add_argument("--minutes", type=float)
    given = parser.parse_args()
    section = Section("reliability.md", "python -m benchmarks.soak_layouts")
    began = time.monotonic()
    soak = Soak(warm_dslm())
    while len(soak.kills) < given.kills:
        if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
            print(f"{len(soak.kills)} of {given.kills} kills: the same command goes on")
            return
        soak.kill()
    section.write(report(soak))


if __name__ == "__main__":
    main()
