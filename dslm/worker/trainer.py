"""A Trainer (transformers' or TRL's) with dslm's order of samples, checkpoints and evaluation.

Everything else, the training loop itself included, is the Trainer's own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from torch.utils.data import DataLoader, Dataset
from transformers.trainer import SCHEDULER_NAME

from dslm.run.events import Eval
from dslm.run.samples import append_samples
from dslm.worker.adapters import as_they_are
from dslm.worker.assignment import Assignment
from dslm.worker.callbacks import Events
from dslm.worker.checkpoint import CheckpointWriter
from dslm.worker.data.order import GlobalBatchSampler
from dslm.worker.data.store import Samples
from dslm.worker.features import hold_head
from dslm.worker.guards import Guards
from dslm.worker.layout.sequence import part_of
from dslm.worker.portable import load_schedule
from dslm.worker.tasks.base import Collate, Measure

PLACES = "places"  # in a batch, while it is on its way to the training step: what is in it


def run_trainer(base: type) -> Any:
    """The class of a run's Trainer: `base` with what dslm does itself."""
    return type(f"Run{base.__name__}", (RunTrainer, base), {})


class RunTrainer:
    """dslm's own part of any Trainer; comes before it in the list of bases."""

    args: Any
    model: Any
    state: Any
    control: Any
    callback_handler: Any
    model_wrapped: Any
    lr_scheduler: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        *,
        given: Assignment,
        sampler: GlobalBatchSampler,
        collate: Collate,
        measure: Measure,
        events: Events,
        writer: CheckpointWriter,
        train: Samples,
        evaluation: Samples | None,
        **settings: Any,
    ) -> None:
        self.recipe = given.recipe
        self.layout = given.layout
        self._sampler = sampler
        self._collate = collate
        self._measure = measure
        self._events = events
        self._writer = writer
        self._guards: Guards | None = None
        self.evaluated: tuple[int, float | None] = (-1, None)  # at which step, with which loss
        self._places: list[int] = []  # of the samples of the current step, as they were trained on
        events.after_step = self._after_step
        events.engine = lambda: self.model_wrapped
        with as_they_are(settings["model"]):
            super().__init__(data_collator=collate, callbacks=[events, events.measure], **settings)  # type: ignore[call-arg]
        if given.stage == 3:
            hold_head(self.model)
        self._tp_size = given.layout.tensor  # TRL's counts of tokens are divided by it
        # TRL's trainers insist on a `datasets.Dataset` when they are made, and read it nowhere else
        self.train_dataset, self.eval_dataset = train, evaluation

    def get_tp_size(self) -> int:
        """How many ranks compute the same loss: the Trainer weights losses with it."""
        return self.layout.tensor

    def _get_num_items_in_batch(self, batches: list[Any], device: torch.device) -> Any:
        """What losses are divided by; ranks that share sequences count whole ones each."""
        found = super()._get_num_items_in_batch(batches, device)  # type: ignore[misc]
        return None if found is None else found / self.layout.sequence

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count tokens that several ranks read once."""
        before = self.state.num_input_tokens_seen
        super()._track_num_input_tokens(inputs)  # type: ignore[misc]
        grown = self.state.num_input_tokens_seen - before
        self.state.num_input_tokens_seen = before + grown // self.layout.sharing

    def watch(self, guards: Guards) -> None:
        """Let guards see every pass and every step."""
        self._guards = guards
        guards.engine, guards.finish_checkpoints = self._events.engine, self._writer.finish
        self.add_callback(guards)  # type: ignore[attr-defined]

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Which samples each step is of."""
        return self._sampler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **settings: Any) -> Any:
        """The forward pass, whose memory ends here."""
        inputs = part_of(inputs, self.layout)
        measure = self._events.measure
        if not measure.peaks.measures:
            return super().compute_loss(model, inputs, *args, **settings)  # type: ignore[misc]
        measure.before_forward(self.model_wrapped)
        found = super().compute_loss(model, inputs, *args, **settings)  # type: ignore[misc]
        measure.peaks.end("forward")
        return found

    def create_optimizer(self, *given: Any, **settings: Any) -> Any:
        """The Trainer's, or with LoRA+ one whose rate is another one for the matrices B."""
        lora = self.recipe.lora
        if lora is None or lora.b_lr_ratio == 1:
            return super().create_optimizer(*given, **settings)  # type: ignore[misc]
        from peft.optimizers import create_loraplus_optimizer

        kind, arguments = self.get_optimizer_cls_and_kwargs(self.args)  # type: ignore[attr-defined]
        self.optimizer = create_loraplus_optimizer(
            self.model,  # type: ignore[attr-defined]
            kind,
            loraplus_lr_ratio=lora.b_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **arguments,
        )
        groups = self.optimizer.param_groups  # ZeRO can't flatten an empty one
        groups[:] = [group for group in groups if group["params"]]
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load a schedule of torch's; DeepSpeed has loaded all else."""
        if checkpoint and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            kept = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
            load_schedule(self.lr_scheduler, kept)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this rank; accelerate must not share them out a second time."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._sampler,
            collate_fn=_WithPlaces(self._collate) if self.recipe.log.samples else self._collate,
            num_workers=self.recipe.data.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.recipe.data.workers > 0,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """One forward and backward pass; its samples are noted."""
        self._places += inputs.pop(PLACES, [])
        if self._guards is not None:
            self._guards.before_pass(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *rest)  # type: ignore[misc]
        if self._guards is not None:
            self._guards.after_pass(loss)
        return loss

    def _after_step(self) -> None:
        self._writer.check()
        if self._places:
            if self.layout.reads_first:  # of the ranks that were trained on the same ones
                append_samples(self._events.samples, self.state.global_step, self._places)
            self._places = []

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The task's metric over all ranks, as an event and as the Trainer's metrics."""
        start = time.monotonic()
        was_training = self.model_wrapped.training
        self.model_wrapped.eval()
        found = self._measure(
            self,
            eval_dataset or self.eval_dataset,
            self._collate,
            self.layout,
            micro_batch=self.args.per_device_train_batch_size,
            on_batch=self._events.evaluated_batch,
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))  # type: ignore[attr-defined]
        if was_training:  # not before: TRL's trainers would log what they gathered of training
            self.model_wrapped.train()
        # as the Trainer's own does: else the last step would be evaluated twice
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        loss = found.pop("loss", None)
        self.evaluated = self.state.global_step, loss
        seconds = time.monotonic() - start
        self._events.pause(seconds)
        self._events.write(
            Eval(
                **self._events.stamp(),
                step=self.state.global_step,
                loss=None if loss is None else round(loss, 6),
                seconds=round(seconds, 3),
                metrics={name: round(value, 6) for name, value in found.items()},
            )
        )
        return metrics

    def save_now(self) -> None:
        """Write a checkpoint of the current step."""
        step, loss = self.evaluated
        self._events.pause(
            self._writer.save(self, loss if step == self.state.global_step else None)
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.save_now()


class _WithPlaces:
    """A collate function whose batches say which samples they hold."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._collate(samples), PLACES: _places(samples)}


def _places(samples: list[dict[str, Any]]) -> list[int]:
    """Where samples come from; a prompt with several answers counts once."""
    return [sample["place"] for sample in samples if not sample.get("copy", 0)]
