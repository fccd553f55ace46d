"""The steps of somebody's own Trainer as events of the run: what `dslm launch` shows and lists."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from dslm.run.events import Eval, Start, Step
from dslm.worker.progress import Progress, finite, sizes
from dslm.worker.ranks import Rank

_EVERY_SECONDS = 1.0  # between events of steps that the Trainer logs nothing of


class Steps(Progress):
    """Writes start, step and eval events on rank 0, and tells the guard that there is progress.

    It names no phase: what a script does between two steps, and for how long, is its own affair.
    """

    def __init__(self, rank: Rank) -> None:
        super().__init__(rank)
        self._written = (0.0, 0)  # when the last step event was written, and of which step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs.get("model")
        parameters, trained = sizes(model) if model is not None else (0, 0)
        self._written = (time.monotonic(), state.global_step)
        self._rank.guard.note(step=state.global_step)
        self.write(
            Start(
                **self._rank.stamp(),
                steps=state.max_steps,
                world_size=self._rank.world_size,
                parameters=parameters,
                trained_parameters=trained,
                device=str(args.device),
            )
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._rank.guard.note(step=state.global_step)
        if time.monotonic() - self._written[0] >= _EVERY_SECONDS and not control.should_log:
            self._step(args, state, {})

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self._step(args, state, logs)
        elif "train_loss" in logs:  # of the whole training, at its end
            self._step(args, state, {"loss": logs["train_loss"]})

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        metrics = kwargs.get("metrics") or {}
        named = {str(k).removeprefix("eval_"): finite(v) for k, v in metrics.items()}
        seconds = named.pop("runtime", None)
        loss = named.pop("loss", None)
        for name in ("epoch", "samples_per_second", "steps_per_second"):
            named.pop(name, None)
        self.write(
            Eval(
                **self._rank.stamp(),
                step=state.global_step,
                loss=loss,
                seconds=seconds,
                metrics=named,
            )
        )

    def _step(self, args: TrainingArguments, state: TrainerState, logs: dict[str, Any]) -> None:
        now, (since, before) = time.monotonic(), self._written
        steps = state.global_step - before
        if steps <= 0:
            return
        seconds = max(now - since, 1e-9)
        self._written = (now, state.global_step)
        samples = steps * args.train_batch_size * args.gradient_accumulation_steps
        self.write(
            Step(
                **self._rank.stamp(),
                step=state.global_step,
                loss=finite(logs.get("loss")) if "loss" in logs else self._last_loss(state),
                learning_rate=finite(logs.get("learning_rate")),
                grad_norm=finite(logs.get("grad_norm")),
                step_seconds=round(seconds / steps, 6),
                samples_per_second=round(samples * self._rank.world_size / seconds, 3),
                epoch=round(float(state.epoch), 5) if state.epoch is not None else None,
            )
        )

    @staticmethod
    def _last_loss(state: TrainerState) -> float | None:
        """The loss that was logged last, for steps that none is logged of."""
        logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
        return finite(logged[-1]) if logged else None
