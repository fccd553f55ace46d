"""Checkpoints: written whole or not at all, found again, kept as many as wanted.

A checkpoint is a folder `checkpoints/step-N`. It is written under another name; its manifest, which
lists every file with its size, comes last, then it is renamed. All ranks call, rank 0 moves.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from dslm.files import write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    world_size: int
    zero_stage: int


def write_checkpoint(trainer: Trainer, folder: Path, facts: dict[str, Any], keep: int) -> Path:
    """Write the state of a training; its path.

    Args:
        trainer: at the end of a step.
        folder: all checkpoints of the run.
        facts: what else the manifest says, such as world size and stage.
        keep: complete checkpoints that stay, this one included.
    """
    step = trainer.state.global_step
    final, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    trainer._save_optimizer_and_scheduler(str(partial))
    trainer._save_rng_state(str(partial))
    dist.barrier()
    if first:
        trainer.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        for script in partial.glob("zero_to_*.py"):
            script.unlink()  # copies of DeepSpeed's own converters
        write_json(partial / MANIFEST, {"step": step, **facts, "files": _files(partial)})
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _sync(folder)
        for old in complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old.path)
    dist.barrier()
    return final


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, the oldest first: those whose manifest's files are there in full."""
    found = []
    for manifest in folder.glob("step-*/" + MANIFEST):
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            if _files(manifest.parent) != content["files"]:
                continue
            found.append(
                Checkpoint(
                    path=manifest.parent,
                    step=content["step"],
                    world_size=content["world_size"],
                    zero_stage=content["zero_stage"],
                )
            )
        except (OSError, ValueError, KeyError):
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint."""
    return next(reversed(complete_checkpoints(folder)), None)


def timed_checkpoint(
    trainer: Trainer, folder: Path, facts: dict[str, Any], keep: int
) -> tuple[Path, float]:
    """Write a checkpoint; its path and the seconds that training stood still."""
    start = time.monotonic()
    path = write_checkpoint(trainer, folder, facts, keep)
    return path, time.monotonic() - start


def _files(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below a folder but the manifest itself."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
