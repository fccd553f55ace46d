"""Write a checkpoint, whole or not at all; all ranks call, rank 0 moves it to its place."""

from __future__ import annotations

import copy
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers.trainer import TRAINER_STATE_NAME

from dslm.run.checkpoints import complete_checkpoints, write_manifest

DESCRIPTION = "model"  # in a checkpoint: what `dslm export` needs beside the tensors


def write_checkpoint(
    trainer: Any, folder: Path, facts: dict[str, Any], keep: int
) -> tuple[Path, float]:
    """Write the state of a training; its path, and the seconds that training stood still.

    Args:
        trainer: at the end of a step.
        folder: all checkpoints of the run.
        facts: what else the manifest says: world size and stage.
        keep: complete checkpoints that stay, this one included.
    """
    began = time.monotonic()
    step = trainer.state.global_step
    final, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    first = dist.get_rank() == 0
    if first:
        for leftover in folder.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    dist.barrier()
    trainer._save_optimizer_and_scheduler(str(partial))
    trainer._save_rng_state(str(partial))
    dist.barrier()
    if first:
        _describe(trainer, partial / DESCRIPTION)
        trainer.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        for script in partial.glob("zero_to_*.py"):
            script.unlink()  # copies of DeepSpeed's own converters
        for path in partial.rglob("*"):
            _sync(path)
        write_manifest(partial, step=step, **facts)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _sync(folder)
        for old in complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old.path)
    dist.barrier()
    return final, time.monotonic() - began


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
