"""The real peaks of memory by phase, and the real time of a step, beside what the plan says.

Measured in the first steps of an attempt; afterwards only the highest of all is kept, so that a
long training pays nothing. On an accelerator the allocator counts (it needs no synchronisation),
on a CPU the kernel does: the highest resident memory of the process since it was last asked.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dslm.run.documents import PlanFile, PlannedDevice, find_document
from dslm.run.events import Accuracy, Estimate, Peak

MEASURED_STEPS = 5
_EARLY = 0.05  # of a run, after which its time is estimated anew
# What torch and DeepSpeed load on a CPU when they first compute, beside any tensor: kernels,
# threads' stacks, gloo's buffers. 23 to 176 MiB in sixty runs of small models, stages 0 to 3.
_FIRST_PASS_BYTES = 100 * 2**20
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak of resident memory to what is resident now


class Peaks:
    """The highest memory of each phase, bytes; `end` closes a phase and begins the next."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.highest = 0
        self._open = _reset()

    @property
    def measures(self) -> bool:
        """Whether phases are still distinguished."""
        return self._open

    def end(self, phase: str) -> None:
        """A phase is over."""
        if not self._open:
            return
        peak = _peak()
        self.phases[phase] = max(self.phases.get(phase, 0), peak)
        self.highest = max(self.highest, peak)
        self._open = _reset()

    def stop(self) -> None:
        """From now on only the highest counts."""
        self._open = False

    def overall(self) -> int:
        """The highest so far."""
        return max(self.highest, _peak())


class Measure(TrainerCallback):
    """Closes the phases of the first steps and takes the time of all."""

    def __init__(self, peaks: Peaks) -> None:
        self.peaks = peaks
        self._seconds: deque[float] = deque(maxlen=1000)
        self._before: float | None = None
        self.steps = 0
        self._hooked: Any = None
        self._forwarded = False  # in this step

    @property
    def step_seconds(self) -> float | None:
        """The usual time of a step; None before there are two."""
        return median(self._seconds) if self._seconds else None

    def before_forward(self, engine: Any) -> None:
        """A forward pass begins: what was before it is the backward pass of another micro batch.

        The first time, ask the optimizer to tell when it starts: there the backward pass ends.
        """
        self.peaks.end("backward" if self._forwarded else "between")
        self._forwarded = True
        optimizer: Any = getattr(engine, "basic_optimizer", None)
        if self._hooked is None and hasattr(optimizer, "register_step_pre_hook"):
            self._hooked = optimizer.register_step_pre_hook(
                lambda *_: self.peaks.end("backward") if self.peaks.measures else None
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.peaks.end("init")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.peaks.end("step")
        self._forwarded = False
        self.steps += 1
        if self.steps == MEASURED_STEPS:
            self.peaks.stop()
            if self._hooked is not None:
                self._hooked.remove()
        now = time.monotonic()
        if self._before is not None:
            self._seconds.append(now - self._before)
        self._before = now


def resident() -> int:
    """Bytes of this process that are resident now; 0 where an accelerator does the counting."""
    if torch.cuda.is_available():
        return 0
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def accuracy(plan: Path, measure: Measure, process: int) -> Accuracy:
    """Predicted, measured, difference, as an event that has no time yet.

    The plan's guess of what a process takes (`context`) is replaced by what it took: nothing of
    what an accelerator's allocator counts, and on a CPU what preparing the data left, with what
    the libraries still load.

    Args:
        plan: plan.json; where there is none, nothing was predicted.
        measure: what was measured.
        process: bytes that were resident before there was a model.
    """
    planned = find_document(PlanFile, plan) or PlanFile()
    device = planned.memory.device or PlannedDevice()
    seconds = planned.time.step_seconds if planned.time else None
    peak = measure.peaks.overall()
    if process:
        process += _FIRST_PASS_BYTES
    own = process - (device.context or 0)
    predicted = device.total + own if device.total else None
    return Accuracy(
        time=0.0,
        attempt=0,
        predicted_bytes=predicted,
        measured_bytes=peak,
        process_bytes=process,
        difference=_difference(predicted, peak),
        phases={
            name: Peak(predicted=size + own, measured=measure.peaks.phases[name])
            for name, size in (device.phases or {}).items()
            if name in measure.peaks.phases
        },
        predicted_step_seconds=seconds,
        measured_step_seconds=measure.step_seconds,
        step_difference=_difference(seconds, measure.step_seconds),
    )


def estimate(plan: Path, measure: Measure, step: int, steps: int) -> Estimate | None:
    """The time of the whole run at the pace of its steps so far, as an event without a time.

    None before a twentieth of the run, or before there are a few steps to go by.
    """
    seconds = measure.step_seconds
    if seconds is None or measure.steps <= MEASURED_STEPS or step < steps * _EARLY:
        return None
    planned = find_document(PlanFile, plan) or PlanFile()
    predicted = planned.time.step_seconds if planned.time else None
    cost = planned.time.cost if planned.time else None
    return Estimate(
        time=0.0,
        attempt=0,
        step=step,
        steps=steps,
        seconds=steps * seconds,
        predicted_seconds=steps * predicted if predicted else None,
        cost=cost * seconds / predicted if cost is not None and predicted else None,
    )


def _difference(predicted: float | None, measured: float | None) -> float | None:
    """Return the error of the prediction, relative to the measurement."""
    return round(predicted / measured - 1, 4) if predicted and measured else None


def _peak() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _reset() -> bool:
    """Begin a new peak; False where that can't be done."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False  # some containers forbid it: only the overall peak is known
    return True
