"""Records what a layout really does: samples, gradients, norm, updates and losses of each step.

Gathers over the ranks by DeepSpeed's own functions; everything whole is kept by rank 0 alone.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dslm.recipe.schema import Recipe
from dslm.worker.layout.ranks import Layout
from dslm.worker.layout.sequence import part_of
from dslm.worker.layout.tensor import whole_logits
from dslm.worker.replicas import Replicas
from dslm.worker.trainer import PLACES
from dslm.worker.verify.compare import Step
from dslm.worker.verify.learnt import CAUSAL, smoothing_of, summed_loss
from dslm.worker.verify.reference import Tensors
from dslm.worker.verify.settings import Settings, settings_of
from dslm.worker.verify.values import Values


@dataclass(slots=True)
class _Mine:
    """What this rank did in a step: every rank tells the others."""

    places: list[int] = field(default_factory=list)  # of the samples that it was trained on
    rows: dict[int, tuple[float, int]] = field(default_factory=dict)  # sum and count, by place
    loss: float = 0.0
    settings: Settings = field(default_factory=dict)  # of its optimizer
    idle: str = ""  # a module that doesn't know that it is trained
    draw: int = 0  # a number for its random state
    late: bool = False


class Recorder(TrainerCallback):
    """Stands between a trainer and its engine for a few steps."""

    _values: Values  # both since the training began
    _replicas: Replicas

    def __init__(self, trainer: Any, recipe: Recipe, late: Callable[[int], bool]) -> None:
        """Record a run's trainer, which has not started.

        Args:
            trainer: the trainer.
            recipe: what it learns.
            late: is told how many steps are made; whether they are enough, as rank 0 sees it.
        """
        self.steps: list[Step] = []
        self._trainer = trainer
        self._layout: Layout = trainer.layout
        self._causal, self._smoothing = recipe.task in CAUSAL, smoothing_of(recipe)
        self._late = late
        self._mine = _Mine()
        self._gradients: Tensors = {}
        self._before: Tensors = {}
        self._group = dist.new_group(backend="gloo")
        self._compute, trainer.compute_loss = trainer.compute_loss, self._compute_loss
        self._pass, trainer.training_step = trainer.training_step, self._training_step
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        engine = self._trainer.model_wrapped
        self._values = Values(engine, shared=self._layout.shares_parameters)
        self._replicas = Replicas(engine)
        self._before = self._values.parameters()
        usual = engine.step

        def step(*given: Any, **settings: Any) -> Any:
            if engine.is_gradient_accumulation_boundary():
                self._gradients = self._values.gradients()
                self._mine.settings = settings_of(engine)  # before the schedule moves it
            return usual(*given, **settings)

        engine.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mine = _Mine(draw=_random_state())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        engine = self._trainer.model_wrapped
        differ = self._replicas.differing(None) or ""
        after = self._values.parameters()
        norm = engine.get_global_grad_norm() if self._values.norm_of_gradients else None
        self._mine.late = self._late(state.global_step)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, self._mine, group=self._group)
        self.steps.append(
            Step(
                before=self._before,
                gradients=self._gradients,
                norm=None if norm is None else float(norm),
                losses=self._losses(every),
                read=Counter(p for own in every[:: self._layout.sharing] for p in own.places),
                loss=sum(own.loss for own in every) / len(every),
                after=after,
                settings=tuple(own.settings for own in every),
                idle=tuple(own.idle for own in every),
                draws=tuple(own.draw for own in every),
                differ=differ,
                unknown=self._values.unknown,
                muon=self._values.muon,
            )
        )
        self._before, self._gradients = after, {}
        if every[0].late:
            control.should_training_stop = True

    def _losses(self, every: list[_Mine]) -> dict[int, tuple[float, int]]:
        """The loss of each sample: ranks that share a sequence have a part of it each."""
        layout, found = self._layout, dict[int, tuple[float, int]]()
        for rank, own in enumerate(every):
            if rank % layout.sharing >= layout.sequence:
                continue  # a rank of the same layers has told it already
            for place, (value, count) in own.rows.items():
                before = found.get(place, (0.0, 0)) if rank % layout.sharing else (0.0, 0)
                found[place] = (before[0] + value, before[1] + count)
        return found

    def _compute_loss(self, model: Any, inputs: Any, *rest: Any, **settings: Any) -> Any:
        """The trainer's own, and beside it the loss of each sample where there are labels."""
        asked = settings.pop("return_outputs", False)
        labels = inputs.get("labels")
        if not isinstance(labels, torch.Tensor):  # TRL's would make a second pass for outputs
            found = self._compute(model, inputs, *rest, return_outputs=asked, **settings)
            self._look()
            return found
        labels = labels.clone()
        loss, outputs = self._compute(model, inputs, *rest, return_outputs=True, **settings)
        self._look()
        logits = getattr(outputs, "logits", None)
        if logits is None and isinstance(outputs, dict):
            logits = outputs.get("logits")
        if isinstance(logits, torch.Tensor):
            self._note(labels, logits.detach())
        return (loss, outputs) if asked else loss

    def _look(self) -> None:
        """Look for a module that computes as in an evaluation."""
        named = self._trainer.model_wrapped.module.named_modules()
        idle = next((name or "the model" for name, m in named if not m.training), "")
        self._mine.idle = self._mine.idle or idle

    def _note(self, labels: torch.Tensor, logits: torch.Tensor) -> None:
        logits = whole_logits(logits, self._layout, self._trainer.model_wrapped)
        shifted = self._causal
        if self._layout.sequence > 1:
            labels, shifted = part_of({"labels": labels}, self._layout)["shift_labels"], False
        places = self._mine.places[-len(labels) :]
        if logits.shape[0] != len(labels) or len(places) != len(labels):
            return
        rows = labels.view(len(labels), -1)
        learnt = (rows[:, 1:] if shifted else rows) != -100
        if logits.dim() == 3 and logits.shape[1] != labels.shape[-1]:
            return
        with torch.no_grad():
            sums = summed_loss(logits, labels, shifted=shifted, smoothing=self._smoothing)
        for place, value, count in zip(places, sums.tolist(), learnt.sum(1).tolist(), strict=True):
            self._mine.rows[place] = (value, int(count))

    def _training_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> torch.Tensor:
        """The trainer's own, whose loss is a share of the step's."""
        self._mine.places += [int(place) for place in inputs.get(PLACES, ())]
        loss: torch.Tensor = self._pass(model, inputs, *args, **settings)
        self._mine.loss += float(loss.detach())
        return loss


def _random_state() -> int:
    """A number for what this rank draws next."""
    state = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state()
    return zlib.crc32(state.numpy().tobytes())
