"""What the guards of a training cost: their share of a step, measured in the ranks themselves."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import training
from benchmarks.training import MODEL
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from tests.support.warm import PLANT, warm_dslm

REPEATS = 3
STEPS = 60
_SECONDS = "DSLM_BENCH_SECONDS"  # the file where rank 0 writes what its guards took


def timed(rank: int) -> None:
    """Take the time of everything that guards do on this rank."""
    from dslm.worker.guards import Guards

    spent = {"seconds": 0.0, "steps": 0}

    def watch(name: str) -> None:
        usual = getattr(Guards, name)

        def called(self: Any, *given: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return usual(self, *given, **more)
            finally:
                spent["seconds"] += time.perf_counter() - start
                spent["steps"] += name == "on_step_end"
                if rank == 0:
                    Path(os.environ[_SECONDS]).write_text(json.dumps(spent))

        setattr(Guards, name, called)

    for name in ("before_pass", "after_pass", "on_step_end"):
        watch(name)


def _share(folder: Path, stage: int, every: int) -> tuple[float, float]:
    """Seconds of the guards in a step, and of the whole step, on rank 0."""
    run = folder / f"run-{time.monotonic_ns()}"
    file = folder / "seconds.json"
    settings = {
        **MODEL, "parallel.zero_stage": stage, "duration.steps": STEPS, "log.every": 1,
        "checkpoint.every": "null", "evaluation.sample": "null", "data.eval": 0,
        "guards.every": every,
    }  # fmt: skip
    argv = training(run, settings, program=warm_dslm())
    told = {**os.environ, PLANT: "benchmarks.guards:timed", _SECONDS: str(file)}
    subprocess.run(argv, check=True, capture_output=True, env=told)
    spent = json.loads(file.read_text())
    steps = [e.step_seconds for e in read_history(RunDirectory(run)).steps[5:] if e.step_seconds]
    return spent["seconds"] / spent["steps"], median(steps)


def report() -> str:
    """The share of the guards in a step, as a table."""
    lines = [
        "## Guards of a training\n",
        f"A Llama of 2.4M parameters, 2 CPU ranks, {STEPS} steps; what rank 0 spends in guards, "
        f"waiting for the other rank included; medians of {REPEATS} runs. The small message in it "
        "carries the wish to stop, which ranks agreed on before there were guards.\n",
        "| ZeRO stage | guards, ms a step | whole step, ms | share |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for stage in (0, 2, 3):
            found = [_share(Path(name), stage, 50) for _ in range(REPEATS)]
            own, whole = (median(each[n] for each in found) for n in (0, 1))
            lines.append(f"| {stage} | {own * 1e3:.2f} | {whole * 1e3:.1f} | {own / whole:.2%} |")
    return "\n".join(lines) + "\n"
