"""`make bench-planner`: the planner against measurements; writes docs/planner-accuracy.md."""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import (
    planner_coverage,
    planner_large,
    planner_memory,
    planner_others,
    planner_published,
    planner_real,
    planner_steps,
)
from benchmarks.pages import machine

PAGE = Path(__file__).parent.parent / "docs" / "planner-accuracy.md"
MEASURED = Path(__file__).parent.parent / "build" / "planner"
_HEAD = """\
# How far off the planner is

`make bench-planner`, {date}, on: {machine}.

Every run adds to this: it ends with a line and an `accuracy` event that say what was predicted and
what was measured.

## Against DeepSpeed itself

Two CPU ranks train with the real engine, the code of `dslm train` and its resolved config; every
tensor's storage is followed from its making to its end, for the steps of two global batches. `off`
compares the highest phase of the plan, without the process itself (`context`), with the highest
that was measured; on a CPU, what is offloaded lies in the same memory and is counted with it.
Fragmentation, kernels' own workspaces and the context of an accelerator can't be seen this way:
the plan allows {margin:.0%} of the device for them. `2 × 4` is a step of four micro batches of two
samples. Not measured here: tensor and sequence parallelism, ZeRO++, MiCS and NVMe.

"""
_OTHERS = """
Architectures that no preset has, other optimizers, changed sizes of buckets, three micro batches a
step, odd ones, adapters on some modules (`python -m benchmarks.planner_others`):

"""
_LARGE = """
## Against transformers, for presets of 1B to 8B

One forward and one backward pass under FakeTensorMode, bf16, attention (SDPA) with an explicit
mask, one rank, gradients included. GPT-2 without dropout: on a CPU it takes another way through
attention than on an accelerator.

"""
_REAL = """
## Published architectures at their real sizes

None is a preset. The same passes, with the attention that training uses: within documents where the
model's code allows it (its kernels keep query, key, value, output and log-sum-exp), without
recomputation and with it.

"""
_COVERAGE = """
## Any type that transformers has

The profile against whole passes of models with the types' default configs and six layers, at
samples, a length and layers that were not traced; exact: parameters equal, bytes within half a
percent.

"""
_STEPS = """
## Seconds of a step on this machine

After `dslm doctor --measure`: trainings of small models by `dslm train`'s own code, nothing else
running, the middle of ten steps beside what the plan said (`python -m benchmarks.planner_steps`).

"""
_PUBLISHED = """
## The time model against published runs

ZeRO 3 (or 2, where only gradients are sharded) as the planner predicts it beside runs that others
published, most of them with FSDP. Five constants are fitted (`python -m
benchmarks.planner_published`): what large products and attention reach of the peak, on A100 and
H100, and the share of a collective that computation doesn't hide. They are fitted on every other
row of one source, in the order of its tables; all other rows are below. The bandwidth of memory and
links (85 and 75 % of what is rated), the latency of a collective and the cost of a launch are taken
from public measurements, which `dslm/cluster/devices.py` names. Devices of other generations have
no such fit, and `plan` says ± 30 %. A run with DeepSpeed and transformers' own kernels was not
among them: `dslm doctor --measure` and the accuracy event of a short run say more about yours.

"""


_SPEED = """
## How long a plan takes

`dslm plan llama-3.1-8b --json` from the shell, start-up included, seconds of CPU time (the machine
is shared), the least of {count}: {lines}.
"""
_COUNT = 7
_ENOUGH = 40  # configurations of the engine


def speed() -> str:
    """CPU seconds of planning for few and for many devices, start-up included."""
    program = Path(sys.executable).parent / "dslm"
    parts = []
    for gpus in (8, 16384):
        argv = [
            str(program), "plan", "llama-3.1-8b", "--gpus", str(gpus), "--device", "h100-80gb",
            "--set", "batch.global_size=16384", "--json",
        ]  # fmt: skip
        seconds = []
        for _ in range(_COUNT):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(argv, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds.append(used)
        parts.append(f"{min(seconds):.2f} s for {gpus} GPUs")
    return _SPEED.format(count=_COUNT, lines=", ".join(parts))


def main() -> int:
    """Measure what isn't measured yet, write the page; fail where the bounds aren't kept."""
    from dslm.plan.memory import MARGIN

    parser = argparse.ArgumentParser(description="The planner against measurements.")
    parser.add_argument(
        "--measured", type=Path, default=MEASURED, metavar="FOLDER",
        help="where measurements are kept; those that are there aren't repeated",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no measurement after so many"
    )
    given = parser.parse_args()
    folder, minutes = given.measured, given.minutes
    rows = planner_memory.measured(folder / "engine.json", minutes=minutes)
    others = planner_others.measured(folder / "others.json", minutes=minutes)
    if len(rows) < _ENOUGH:
        print(f"only {len(rows)} configurations ran; {_ENOUGH} make a page", file=sys.stderr)
        return 1
    large = planner_large.measured(folder / "large.json", minutes=minutes)
    real = planner_real.measured(folder / "real.json", minutes=minutes)
    steps = planner_steps.measured(folder / "steps.json", minutes=minutes)
    coverage = planner_coverage.run(folder / "coverage.json", minutes=minutes)
    text = "".join([
        _HEAD.format(date=time.strftime("%Y-%m-%d"), machine=machine(), margin=MARGIN),
        planner_memory.table(rows),
        _OTHERS,
        planner_memory.table(others),
        _LARGE,
        planner_large.table(large),
        _REAL,
        planner_real.table(real),
        _COVERAGE,
        planner_coverage.table(coverage),
        _STEPS,
        planner_steps.table(steps),
        _PUBLISHED,
        planner_published.table(),
        speed(),
    ])  # fmt: skip
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    found = [
        planner_memory.within_bounds([abs(error) for error in planner_memory.errors(each)])
        for each in (rows, others)
    ]
    return 0 if all(found) and planner_memory.within_bounds(planner_large.errors(large)) else 1


if __name__ == "__main__":
    sys.exit(main())
