"""Records what a layout really does: gradients, norm, updates and losses of each step.

Gathers over the ranks by DeepSpeed's own functions; everything whole is kept by rank 0 alone.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dslm.worker.replicas import differing
from dslm.worker.verify.compare import Step
from dslm.worker.verify.reference import CAUSAL, Tensors, summed_loss


class Recorder(TrainerCallback):
    """Stands between a trainer and its engine for a few steps."""

    def __init__(self, trainer: Any, task: str) -> None:
        """Record a run's trainer, which has not started."""
        self.steps: list[Step] = []
        self._trainer = trainer
        self._task = task
        self._queue: list[int] = []
        self._rows: dict[int, tuple[float, int]] = {}
        self._loss = 0.0
        self._gradients: Tensors = {}
        self._before: Tensors = {}
        self._group = dist.new_group(backend="gloo")
        self._draw, self._rate = 0, 0.0
        self._compute, trainer.compute_loss = trainer.compute_loss, self._compute_loss
        self._pass, trainer.training_step = trainer.training_step, self._training_step
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        engine = self._trainer.model_wrapped
        self._before = _parameters(engine)
        usual = engine.step

        def step(*given: Any, **settings: Any) -> Any:
            if engine.is_gradient_accumulation_boundary():
                self._gradients = _gradients(engine)
                self._rate = _rate(engine)  # before the schedule moves it
            return usual(*given, **settings)

        engine.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        mine = self._trainer.sampler.samples_of_rank(state.global_step)
        self._queue = [int(place) for place in mine]
        self._draw = _random_state()
        self._rows, self._loss = {}, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        engine = self._trainer.model_wrapped
        differ = differing(engine, getattr(engine, "data_parallel_group", None), None) or ""
        after = _parameters(engine)
        norm = engine.get_global_grad_norm()
        mine = (self._rows, self._loss, self._rate, self._draw)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine, group=self._group)
        rows: dict[int, tuple[float, int]] = {}
        for found, *_ in every:
            rows.update(found)
        self.steps.append(
            Step(
                before=self._before,
                gradients=self._gradients,
                norm=None if norm is None else float(norm),
                losses=rows,
                loss=sum(own[1] for own in every) / len(every),
                after=after,
                rates=tuple(own[2] for own in every),
                draws=tuple(own[3] for own in every),
                differ=differ,
            )
        )
        self._before, self._gradients = after, {}

    def _compute_loss(self, model: Any, inputs: Any, *rest: Any, **settings: Any) -> Any:
        """The trainer's own, and beside it the loss of each sample where there are logits."""
        asked = settings.pop("return_outputs", False)
        labels = inputs.get("labels")
        labels = labels.clone() if isinstance(labels, torch.Tensor) else None
        loss, outputs = self._compute(model, inputs, *rest, return_outputs=True, **settings)
        logits = getattr(outputs, "logits", None)
        if logits is None and isinstance(outputs, dict):
            logits = outputs.get("logits")
        if labels is not None:
            self._note(labels, logits)
        return (loss, outputs) if asked else loss

    def _note(self, labels: torch.Tensor, logits: torch.Tensor | None) -> None:
        places = [self._queue.pop(0) for _ in range(min(len(labels), len(self._queue)))]
        shifted = self._task in CAUSAL
        if not isinstance(logits, torch.Tensor) or logits.shape[0] != len(labels):
            return
        rows = labels.view(len(labels), -1)
        learnt = (rows[:, 1:] if shifted else rows) != -100
        if logits.dim() == 3 and logits.shape[1] != labels.shape[-1]:
            return
        with torch.no_grad():
            sums = summed_loss(logits.detach(), labels, shifted=shifted)
        for place, value, count in zip(places, sums.tolist(), learnt.sum(1).tolist(), strict=False):
            self._rows[place] = (value, int(count))

    def _training_step(self, *args: Any, **settings: Any) -> torch.Tensor:
        """The trainer's own, whose loss is a share of the step's."""
        loss: torch.Tensor = self._pass(*args, **settings)
        self._loss += float(loss.detach())
        return loss


def _parameters(engine: Any) -> Tensors:
    """All parameters in full, fp32, on the CPU of rank 0."""
    found: Tensors = {}
    for name, parameter in engine.module.named_parameters():
        value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if value is None:
            value = _whole(parameter)
        if dist.get_rank() == 0:
            found[name] = value.detach().float().cpu().clone().view(_shape(parameter))
    return found


def _gradients(engine: Any) -> Tensors:
    """All gradients in full, without the loss scale, on the CPU of rank 0."""
    found: Tensors = {}
    optimizer = engine.optimizer
    scale = float(getattr(optimizer, "cur_scale", 1.0) or 1.0) if engine.fp16_enabled() else 1.0
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        value = safe_get_full_grad(parameter)
        if value is not None and dist.get_rank() == 0:
            found[name] = value.detach().float().cpu().clone().view(_shape(parameter)) / scale
    return found


def _whole(parameter: Any) -> torch.Tensor:
    if not hasattr(parameter, "ds_id"):
        value: torch.Tensor = parameter.data
        return value
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.data.clone()


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _random_state() -> int:
    """A number for what this rank draws next."""
    state = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state()
    return zlib.crc32(state.numpy().tobytes())


def _rate(engine: Any) -> float:
    """The learning rate that this rank's optimizer used."""
    groups = engine.optimizer.param_groups if hasattr(engine.optimizer, "param_groups") else []
    return float(groups[0]["lr"]) if groups else 0.0
