"""transformers' Trainer with dslm's order of samples, checkpoints and evaluation.

Everything else, the training loop itself included, is the Trainer's own.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from dslm.recipe.schema import Recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import EventName
from dslm.worker.callbacks import Events
from dslm.worker.checkpoint import write_checkpoint
from dslm.worker.data.order import GlobalBatchSampler
from dslm.worker.evaluate import Collate, evaluate


class DslmTrainer(Trainer):
    """The Trainer of a run."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        run: RunDirectory,
        sampler: GlobalBatchSampler,
        collate: Collate,
        events: Events,
        checkpoint_facts: dict[str, Any],
        **settings: Any,
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._sampler = sampler
        self._collate = collate
        self._events = events
        self._checkpoint_facts = checkpoint_facts
        events.engine = lambda: self.model_wrapped
        super().__init__(data_collator=collate, callbacks=[events], **settings)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this rank; accelerate must not share them out a second time."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._sampler,
            collate_fn=self._collate,
            num_workers=self._recipe.data.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self._recipe.data.workers > 0,
        )

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean loss per token over all ranks, as an event and as the Trainer's metrics."""
        start = time.monotonic()
        found = evaluate(
            self.model_wrapped,
            eval_dataset or self.eval_dataset,
            self._collate,
            micro_batch=self.args.per_device_train_batch_size,
            device=self.args.device,
            shifted=self._recipe.task in ("pretrain", "sft"),
        )
        seconds = time.monotonic() - start
        self._events.pause(seconds)
        self._events.write(
            EventName.EVAL,
            step=self.state.global_step,
            loss=round(found["loss"], 6),
            perplexity=round(found["perplexity"], 6),
            tokens=int(found["tokens"]),
            seconds=round(seconds, 3),
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        return metrics

    def save_now(self) -> None:
        """Write a checkpoint of the current step."""
        path, seconds = write_checkpoint(
            self, self._run.checkpoints, self._checkpoint_facts, self._recipe.checkpoint.keep
        )
        self._events.pause(seconds)
        self._events.write(
            EventName.CHECKPOINT,
            step=self.state.global_step,
            path=str(path.relative_to(self._run.path)),
            seconds=round(seconds, 3),
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.save_now()
