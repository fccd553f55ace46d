"""Write checkpoints, whole or not at all; all ranks call, rank 0 moves them to their place.

Training stands still while DeepSpeed writes its tensors. What makes a checkpoint complete (flushing
to disk, checksums, the manifest, the rename) goes on beside training, on rank 0.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers.trainer import TRAINER_STATE_NAME

from dslm.recipe.schema import Checkpoint
from dslm.run.checkpoints import complete_checkpoints, superseded, write_manifest

DESCRIPTION = "model"  # in a checkpoint: what `dslm export` needs beside the tensors
# step, folder, seconds that training stood still, seconds until it was complete
OnComplete = Callable[[int, Path, float, float], None]


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time."""

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint,
        facts: dict[str, Any],
        on_complete: OnComplete,
        *,
        shared: bool = True,
    ) -> None:
        """A writer.

        Args:
            folder: of all checkpoints.
            settings: what the recipe says.
            facts: what else the manifest says: world size and stage.
            on_complete: told of each checkpoint that is complete.
            shared: whether all ranks see the folder; else a checkpoint can't be complete anywhere,
                and none is written.
        """
        self._folder = folder
        self._settings = settings
        self._facts = facts
        self._shared = shared
        self._on_complete = on_complete
        self.last_step: int | None = None  # of the last checkpoint begun
        self._finishing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, trainer: Any, eval_loss: float | None) -> float:
        """Write the state of a training at the end of a step; seconds that it stood still.

        Args:
            trainer: the Trainer.
            eval_loss: of an evaluation after this very step, if there was one.

        Raises:
            OSError: the last checkpoint or this one could not be written; older ones are untouched.
        """
        self.finish()
        began = time.monotonic()
        step = self.last_step = trainer.state.global_step
        if not self._shared:
            return 0.0
        partial = self._folder / f".step-{step}.partial"
        first = dist.get_rank() == 0
        if first:
            for leftover in self._folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        dist.barrier()
        trainer._save_optimizer_and_scheduler(str(partial))
        trainer._save_rng_state(str(partial))
        dist.barrier()
        blocked = time.monotonic() - began
        if first:
            _describe(trainer, partial / DESCRIPTION)
            trainer.state.save_to_json(str(partial / TRAINER_STATE_NAME))
            facts = {**self._facts, "step": step, "eval_loss": eval_loss}
            self._finishing = threading.Thread(
                target=self._complete, args=(step, partial, facts, began, blocked)
            )
            self._finishing.start()
        return blocked

    def finish(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            OSError: it could not be written.
        """
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong beside training, if anything did."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _complete(
        self, step: int, partial: Path, facts: dict[str, Any], began: float, blocked: float
    ) -> None:
        try:
            final = self._folder / f"step-{step}"
            for script in partial.glob("zero_to_*.py"):
                script.unlink()  # copies of DeepSpeed's own converters
            for path in partial.rglob("*"):
                _sync(path)
            write_manifest(partial, **facts)
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
            _sync(self._folder)
            complete = complete_checkpoints(self._folder)
            for old in superseded(complete, self._settings.keep, self._settings.keep_best):
                shutil.rmtree(old.path)
            self._on_complete(step, final, blocked, time.monotonic() - began)
        except OSError as failure:
            self._failure = failure


def _describe(trainer: Any, folder: Path) -> None:
    """What makes a Hugging Face model beside tensors: configs of model and adapters, tokenizer."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = copy.deepcopy(model.config)
    config.use_cache = True
    config.architectures = [type(getattr(model, "base_model", model)).__name__]
    config.save_pretrained(folder)
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.save_pretrained(folder)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
