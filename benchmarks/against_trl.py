"""`dslm train` against TRL's trainers, with the same data, seed and model: numbers and steps/s."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.commands import BIN, checked, forget_shared_memory, training
from dslm.host.network import free_port
from dslm.recipe.load import read_resolved
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history

REPEATS = 3
STEPS, WARM = 24, 6  # WARM aren't counted
RANKS = 2
SCRIPT = Path(__file__).with_name("trl_script.py")
_COMMON = {
    "duration.steps": STEPS, "log.every": 1, "checkpoint.every": "null", "data.eval": 0,
    "evaluation.sample": "null", "parallel.ranks": RANKS, "parallel.zero_stage": 2,
    "data.packing": "false",
}  # fmt: skip
_TEXT = {
    "data.sequence_length": 128, "batch.global_size": 16, "batch.micro_size": 4,
    "model.architecture.hidden_size": 256, "model.architecture.intermediate_size": 704,
    "model.architecture.num_hidden_layers": 6,
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "sft": _TEXT,
    "dpo": _TEXT,
    "grpo": {"batch.global_size": 256, "batch.micro_size": 32, "rollout.max_tokens": 4},
}
# letters of a record: none is cut at 128 tokens, which each side does in its own way
_LONGEST = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one training gave at every step: loss (GRPO: reward), gradient's norm, when it ended."""

    values: list[float]
    norms: list[float]
    ends: list[float]

    @property
    def seconds(self) -> list[float]:
        """How long each step took that counts."""
        return [end - start for start, end in pairwise(self.ends[WARM - 1 :])]


def records_of(task: str, folder: Path) -> Path:
    """Write what both sides train on."""
    from dslm.worker.data.builtin_sources import arithmetic, stdlib_records

    file = folder / f"{task}.jsonl"
    if task == "grpo":
        rows = [record for _, record in arithmetic()]
    else:
        library = Path(json.__file__).parent.parent
        sources = tuple(library / name for name in ("argparse.py", "tempfile.py", "typing.py"))
        rows = [record for _, record in stdlib_records(task, sources)]
        rows = [row for row in rows if sum(map(len, row.values())) < _LONGEST]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def in_order(records: Path, run: Path) -> Path:
    """Write the records in the order in which dslm shows them, each with its place."""
    from dslm.worker.data.order import epoch_order

    rows = [json.loads(line) for line in records.read_text().splitlines()]
    recipe = read_resolved(run / "recipe.yaml")
    count, lines = len(rows), []
    for epoch in range(-(-STEPS * recipe.batch.global_size // count)):
        for index in epoch_order(count, recipe.seed, epoch).tolist():
            lines.append(json.dumps({**rows[index], "place": epoch * count + index}) + "\n")
    file = run.with_suffix(".jsonl")
    file.write_text("".join(lines))
    return file


def with_dslm(task: str, records: Path, folder: Path) -> tuple[Path, Side]:
    """Train by `dslm train`; return the run as well."""
    run = folder / f"{task}-{time.monotonic_ns()}"
    settings = {**_COMMON, "data.train": records, **TASKS[task]}
    checked(training(run, settings, recipe=f"quickstart-{task}"))
    steps = read_history(RunDirectory(run)).steps
    values = [step.metrics["reward"] if task == "grpo" else step.loss for step in steps]
    return run, Side(
        values=[value or 0.0 for value in values],
        norms=[step.grad_norm or 0.0 for step in steps],
        ends=[step.time for step in steps],
    )


def with_trl(run: Path, records: Path) -> Side:
    """Train by TRL's trainer what a run trained."""
    out = run.with_suffix(f".{time.monotonic_ns()}.json")
    argv = [
        sys.executable, str(BIN / "deepspeed"), "--num_gpus", str(RANKS), "--master_port",
        str(free_port()), "--no_local_rank", str(SCRIPT), str(run), str(in_order(records, run)),
        str(out),
    ]  # fmt: skip
    checked(argv, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(SCRIPT.parent.parent))
    forget_shared_memory()
    return Side(**json.loads(out.read_text()))


def compared(task: str, folder: Path, repeats: int = REPEATS) -> str:
    """Train in turn on both sides; return a row of the table."""
    records = records_of(task, folder)
    ours: list[Side] = []
    theirs: list[Side] = []
    for _ in range(repeats):
        run, mine = with_dslm(task, records, folder)
        ours.append(mine)
        theirs.append(with_trl(run, records))
    off = norms = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        off = max(off, *(abs(a - b) for a, b in zip(mine.values, other.values, strict=True)))
        norms = max(norms, *(abs(a / b - 1) for a, b in zip(mine.norms, other.norms, strict=True)))
    dslm, trl = rate(ours), rate(theirs)
    first, last = ours[0].values[0], ours[0].values[-1]
    return (
        f"| {task} | {dslm:.2f} | {trl:.2f} | {dslm / trl:.2f} "
        f"| {first:.4f} → {last:.4f} | {off:.1e} | {norms:.1e} |"
    )


def rate(sides: list[Side]) -> float:
    """Steps per second, of the quickest quarter: what else the machine does shows least in it."""
    return 1 / quantiles([each for side in sides for each in side.seconds], n=4)[0]


def report() -> str:
    """What both learn, and their steps per second, for sft, dpo and grpo."""
    with tempfile.TemporaryDirectory() as name:
        rows = [compared(task, Path(name)) for task in TASKS]
    return "\n".join(
        [
            "## Against TRL's own trainers\n",
            "A script with TRL's trainer (benchmarks/trl_script.py) and `dslm train`: the same "
            f"records in the same order, model, seed and DeepSpeed config; {RANKS} CPU ranks, "
            f"ZeRO-2, fp32, {STEPS - WARM} steps after {WARM} of {REPEATS} alternating rounds. For "
            "GRPO both draw tokens by dslm's noise, or they would learn from different answers. "
            "The speed is that of the lower quartile of steps; a ratio above 1: dslm is faster.\n",
            "| task | dslm, steps/s | TRL, steps/s | ratio | loss (grpo: reward) | its largest "
            "difference | of a gradient's norm, relative |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
