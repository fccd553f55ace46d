"""Events of a training: what the Trainer tells, written to events.jsonl by rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from deepspeed.runtime.engine import EngineTimers
from deepspeed.utils.timer import (
    BACKWARD_INNER_GLOBAL_TIMER,
    BACKWARD_REDUCE_GLOBAL_TIMER,
    FORWARD_GLOBAL_TIMER,
    STEP_GLOBAL_TIMER,
)
from transformers import TrainerControl, TrainerState, TrainingArguments

from dslm.recipe.duration import samples_per_step
from dslm.run import words
from dslm.run.events import CheckpointSaved, Resume, Stamp, Start, Step
from dslm.worker.assignment import Assignment
from dslm.worker.fresh_state import undo_first_step
from dslm.worker.memory_peaks import Measure, Peaks, accuracy, estimate
from dslm.worker.progress import Progress, finite


class Timers(TypedDict, total=False):
    """Seconds of a step, by part."""

    forward_seconds: float
    backward_seconds: float
    communication_seconds: float
    update_seconds: float


_Part = Literal["forward_seconds", "backward_seconds", "communication_seconds", "update_seconds"]
_TIMERS: tuple[tuple[_Part, str], ...] = (
    ("forward_seconds", FORWARD_GLOBAL_TIMER),
    ("backward_seconds", BACKWARD_INNER_GLOBAL_TIMER),
    ("communication_seconds", BACKWARD_REDUCE_GLOBAL_TIMER),
    ("update_seconds", STEP_GLOBAL_TIMER),
)
_OWN = ("loss", "grad_norm", "learning_rate", "epoch")  # of the Trainer's logs: fields of their own


class Events(Progress):
    """Writes start and step events; `start` is the first of them, as far as it is known before."""

    def __init__(self, given: Assignment, start: Start, process: int) -> None:
        super().__init__(given.rank)
        self._recipe = given.recipe
        self._start = start
        self.after_step: Callable[[], None] = lambda: None
        self.engine: Callable[[], Any] = lambda: None  # the trainer's, once it has one
        self.measure = Measure(Peaks())
        self._process = process  # bytes that were resident before there was a model
        self._since = 0.0
        self._step = 0
        self._estimated = False
        self._paused = 0.0  # seconds of evaluating and saving since the last step event

    @property
    def samples(self) -> Path:
        """The file in which this rank records the samples that it was trained on."""
        return self._rank.run.rank_samples(self._rank.attempt.number, self._rank.rank)

    def stamp(self) -> Stamp:
        """Return the beginning of an event that happens now."""
        return self._rank.stamp()

    def evaluated_batch(self) -> None:
        """Note that an evaluation is running."""
        self._rank.guard.note(phase=words.Phase.EVALUATING)

    def pause(self, seconds: float) -> None:
        """Exclude these seconds from the training time."""
        self._paused += seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        engine = self.engine()
        if self._recipe.log.timers and hasattr(engine, "engine_timers"):
            # of whole steps only: DeepSpeed's `wall_clock_breakdown` would print and synchronise
            # in every micro batch
            engine.engine_timers = EngineTimers(
                enable_micro_timers=False, enable_global_timers=True
            )
        self._since, self._step = time.monotonic(), state.global_step
        self._rank.guard.note(phase=words.Phase.FIRST_STEP, step=state.global_step)
        if not state.global_step:
            undo_first_step(engine)
        else:
            self.write(Resume(**self.stamp(), step=state.global_step))
        self.write(replace(self._start, **self.stamp(), steps=state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        found = accuracy(self._rank.run.plan, self.measure, self._process)
        self.write(replace(found, **self.stamp()))

    def on_checkpoint(self, step: int, path: Path, blocked: float, seconds: float) -> None:
        """A checkpoint is complete."""
        self.write(
            CheckpointSaved(
                **self.stamp(),
                step=step,
                path=str(path.relative_to(self._rank.run.path)),
                seconds=round(blocked, 3),
                complete_seconds=round(seconds, 3),
            )
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._rank.guard.note(phase=words.Phase.TRAINING, step=state.global_step)
        self.after_step()
        if not self._estimated and self._rank.rank == 0:
            found = estimate(self._rank.run.plan, self.measure, state.global_step, state.max_steps)
            if found is not None:
                self._estimated = True
                self.write(replace(found, **self.stamp()))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.evaluated_batch()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs or state.global_step <= self._step:
            return
        now = time.monotonic()
        steps = state.global_step - self._step
        seconds = max(now - self._since - self._paused, 1e-9)
        samples = steps * self._recipe.batch.global_size
        tokens_per_sample = self._start.tokens_per_sample
        timers = self._timers(steps)
        # the forward pass alone: in the others a rank waits for its peers
        self._rank.guard.note(work=timers.get("forward_seconds"))
        seen = state.global_step * self._recipe.batch.global_size
        self.write(
            Step(
                **self.stamp(),
                step=state.global_step,
                loss=finite(logs["loss"]),
                learning_rate=finite(logs.get("learning_rate")),
                grad_norm=finite(logs.get("grad_norm")),
                step_seconds=round(seconds / steps, 6),
                samples_per_second=round(samples / seconds, 3),
                tokens_per_second=round(samples * tokens_per_sample / seconds, 3),
                tokens=seen * tokens_per_sample,
                memory_peak_bytes=self.measure.peaks.overall(),
                epoch=round(
                    state.global_step * samples_per_step(self._recipe) / (self._start.samples or 1),
                    5,
                ),
                metrics={n: finite(value) for n, value in logs.items() if n not in _OWN},
                **timers,
            )
        )
        self._since, self._step, self._paused = now, state.global_step, 0.0

    def _timers(self, steps: int) -> Timers:
        """Seconds per step in each part, from DeepSpeed's own timers."""
        timers = getattr(self.engine(), "timers", None)
        if timers is None or not self._recipe.log.timers:
            return {}
        found: Timers = {}
        for field, name in _TIMERS:
            if name in timers.get_timers():
                milliseconds = timers(name).elapsed(reset=True)
                found[field] = round(milliseconds / 1000 / steps, 6)
        return found
