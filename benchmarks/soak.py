"""`make soak`: kill a training again and again with -9, anywhere, and look for what was lost.

    python -m benchmarks.soak [KILLS]

A run is started, a process of it is killed at a random moment (a rank, DeepSpeed's launcher, dslm
itself), the same command is given again, until the run is done. Its loss curve must then be that of
a run nobody disturbed, bit for bit; after every kill the newest checkpoint must be sound and no
older than before, and nothing may be left alive. Two such runs go on beside each other.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dslm.run.checkpoints import newest_sound
from dslm.run.events import read_events

DSLM = Path(sys.executable).parent / "dslm"
PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
TARGETS = ("a rank", "the launcher", "dslm itself")
SETTINGS = {
    "duration.steps": 120, "checkpoint.every": 5, "log.every": 1, "data.eval": 0,
    "data.max_documents": 60, "data.sequence_length": 64, "batch.global_size": 4,
    "batch.micro_size": 2, "model.architecture.hidden_size": 64,
    "model.architecture.intermediate_size": 128, "model.architecture.num_hidden_layers": 2,
    "model.architecture.num_attention_heads": 4, "evaluation.sample": "null",
}  # fmt: skip
_GONE_WITHIN = 10.0  # seconds; DESIGN.md, invariant 4
_TRAINING = 5.0  # a kill while training comes within so many seconds of the attempt's first step
_STARTING = 7.0  # any other within so many of the start


@dataclass(slots=True)
class Tally:
    """What was seen, over all runs."""

    wanted: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    finished: int = 0
    problems: list[str] = field(default_factory=list)
    slowest_end: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enough(self) -> bool:
        """Whether as many kills were made as asked for."""
        return self.kills.total() >= self.wanted


def _argv(run: Path, stage: int) -> list[str]:
    argv = [str(DSLM), "train", "quickstart", "-o", str(run), "--num-gpus", "1"]
    for key, value in {**SETTINGS, "parallel.zero_stage": stage}.items():
        argv += ["-s", f"{key}={value}"]
    return argv


def _curve(run: Path) -> list[float]:
    steps = (e for e in read_events(run / "events.jsonl")[0] if e["event"] == "step")
    return [e["loss"] for _, e in sorted({e["step"]: e for e in steps}.items())]


def _attempt_steps(run: Path, since: float) -> bool:
    if not (run / "events.jsonl").is_file():
        return False
    events, _ = read_events(run / "events.jsonl")
    return any(e["event"] == "step" and e["time"] > since for e in events)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _target(family: list[psutil.Process], wanted: str) -> psutil.Process | None:
    """The process to kill: dslm, or the first of its children that is what was wanted."""
    if wanted == "dslm itself":
        return family[0] if family else None
    word = "dslm.worker.main" if wanted == "a rank" else "deepspeed.launcher.launch"
    for process in family[1:]:
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        # what is run as `-m WORD`; the launcher's command has the ranks' module as an option
        if word in line and line[line.index(word) - 1] == "-m":
            return process
    return None


def _disturb(
    process: subprocess.Popen[bytes], run: Path, dice: random.Random, tally: Tally
) -> None:
    """Kill something of one attempt, unless it ends before."""
    started, training = time.time(), dice.random() < 0.6
    wanted = dice.choice(TARGETS)
    wait = dice.uniform(0, _TRAINING if training else _STARTING)
    while training and not _attempt_steps(run, started):
        if process.poll() is not None:
            return
        time.sleep(0.05)
    time.sleep(wait)
    family = _family(process)
    target = _target(family, wanted)
    if process.poll() is not None or target is None:
        process.wait()
        return
    target.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=_GONE_WITHIN)
    ended = time.monotonic() - killed
    with tally.lock:
        tally.kills[wanted, "training" if training else "starting"] += 1
        tally.slowest_end = max(tally.slowest_end, ended)
        if alive:
            tally.problems.append(f"{run}: {len(alive)} processes alive after {ended:.0f} s")
        if process.returncode == 0:
            tally.problems.append(f"{run}: exit 0 after {wanted} was killed")
        print(f"kill {tally.kills.total()}: {wanted}, {ended:.1f} s", flush=True)


def _one_run(folder: Path, seed: int, expected: list[float], stage: int, tally: Tally) -> None:
    """One run, disturbed until it is done or there were enough kills."""
    dice, run, newest = random.Random(seed), folder / f"run-{seed}", 0
    while True:
        process = subprocess.Popen(
            _argv(run, stage), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if not tally.enough():
            _disturb(process, run, dice, tally)
        _, said = process.communicate()
        if process.returncode == 0:
            break
        if process.returncode == 2:
            tally.problems.append(f"{run}: {said.decode()}")
            return
        if run.is_dir():
            found, problems = newest_sound(run / "checkpoints")
            step = found.step if found else 0
            if problems or step < newest:
                tally.problems.append(f"{run}: after {newest} came {step}, {problems}")
            newest = step
    if _curve(run) != expected:
        tally.problems.append(f"{run}: another loss curve")
    tally.finished += 1
    shutil.rmtree(run)


def main() -> None:
    """Soak, print what was seen, write it down."""
    os.environ["OMP_NUM_THREADS"] = "1"  # two runs at a time: threads of both would wait spinning
    tally = Tally(wanted=int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = {}
        for stage in (2, 3):
            subprocess.run(_argv(folder / f"whole-{stage}", stage), check=True, capture_output=True)
            expected[stage] = _curve(folder / f"whole-{stage}")

        def work(stage: int) -> None:
            seed = stage
            while not tally.enough():
                _one_run(folder, seed, expected[stage], stage, tally)
                seed += 10

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, (2, 3)))
    minutes = (time.monotonic() - began) / 60
    rows = [f"| {who} | {when} | {count} |" for (who, when), count in sorted(tally.kills.items())]
    text = "\n".join(
        [
            "## Killed anywhere, again and again\n",
            f"`make soak`, {time.strftime('%Y-%m-%d')}: {tally.kills.total()} kills with -9 at "
            f"random moments over {tally.finished} runs of {SETTINGS['duration.steps']} steps "
            f"(ZeRO-2 and ZeRO-3, a checkpoint every {SETTINGS['checkpoint.every']} steps), in "
            f"{minutes:.0f} minutes.\n",
            "| killed | while | times |",
            "|---|---|---|",
            *rows,
            f"\nThe slowest end of everything after a kill took {tally.slowest_end:.1f} s. "
            + (
                f"Problems: {len(tally.problems)}: {'; '.join(tally.problems)}"
                if tally.problems
                else "After every kill the newest checkpoint was sound and no older than before; "
                "every run reached its end with the loss curve of an undisturbed one, bit for bit."
            ),
            "",
        ]
    )
    print(text)
    head = "# Reliability\n\nWhat was done to runs, and what came of it.\n\n"
    PAGE.write_text(head + text)
    sys.exit(bool(tally.problems))


if __name__ == "__main__":
    main()
