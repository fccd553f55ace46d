"""Log-probabilities of the reference, computed once and kept with the prepared data.

A table of two numbers a sample, in the order of the data, in a file that is named after the model.
Every rank computes its share before the first step, with a copy of the model that is gone by then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dslm.recipe.schema import Recipe
from dslm.run.words import Phase
from dslm.worker.assignment import Assignment, Inputs
from dslm.worker.data.reference_columns import WithReference

_WEIGHTS = ("*.safetensors", "*.bin")
# recipe's settings of a model that don't change what it computes
_WITHOUT_EFFECT = {
    "activation_checkpointing", "compile", "liger", "attention", "new_parameters", "long_context",
    "tiled_mlp", "tiled_loss", "offload_activations",
}  # fmt: skip


def add_reference(
    given: Assignment, inputs: Inputs, trainer: Any, build: Callable[[], Any]
) -> list[Path]:
    """Give each sample of a trainer the log-probabilities of the reference.

    Args:
        given: the assignment.
        inputs: the data and its task.
        trainer: TRL's; it has taken no step.
        build: makes the model as it is at the start; all ranks call.

    Returns:
        The files that the tables are kept in.
    """
    name = _name(given.recipe)
    wanted = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    files = {
        split: inputs.data.folder / f"reference-{split}-{len(samples)}-{name}.npy"
        for split, samples in wanted.items()
        if samples is not None
    }
    if not _everywhere(all(file.is_file() for file in files.values())):
        engine = _engine(trainer, build())
        for split, file in files.items():
            table = _table(given, trainer, engine, wanted[split], split)
            if given.rank.local_rank == 0:
                _write(file, table)
        engine.destroy()
        del engine
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        dist.barrier()
    for split, file in files.items():
        found = WithReference(wanted[split], np.load(file, mmap_mode="r"))
        setattr(trainer, f"{split}_dataset", found)
    return list(files.values())


def _engine(trainer: Any, model: Any) -> Any:
    from trl.models.utils import prepare_deepspeed
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    disable_dropout_in_model(model)
    add_fused_lm_head(model)
    return prepare_deepspeed(model, trainer.accelerator)


def _table(given: Assignment, trainer: Any, engine: Any, samples: Any, split: str) -> np.ndarray:
    """Two numbers for each sample; all ranks compute a share, and get all."""
    micro, count = trainer.args.per_device_train_batch_size, len(samples)
    rank, world_size = given.layout.data_rank, given.layout.data_size
    table = torch.zeros(count, 2, device=trainer.args.device)
    told = -1
    for start in range(0, count, micro * world_size):
        if 10 * start // count > told:
            told = 10 * start // count
            given.phase(
                Phase.DATA, f"log-probabilities of the reference: {start} of {count} ({split})"
            )
        mine = range(start + rank, start + micro * world_size, world_size)
        batch = trainer.data_collator([samples[i if i < count else 0] for i in mine])
        found = trainer.compute_ref_log_probs(engine, trainer._prepare_inputs(batch))
        for column, numbers in enumerate(found):
            if numbers is None:
                continue
            for i, number in zip(mine, numbers, strict=True):
                if i < count:
                    table[i, column] = number
    dist.all_reduce(table)
    result: np.ndarray = table.cpu().numpy()
    return result


def _everywhere(found: bool) -> bool:
    """Whether all ranks found it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flag = torch.tensor(float(found), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def _write(file: Path, table: np.ndarray) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with partial.open("wb") as stream:
        np.save(stream, table)
    partial.replace(file)


def _name(recipe: Recipe) -> str:
    """A name for the table: it changes with the model, its files and the number format."""
    model = recipe.model
    files = []
    folder = Path(model.name) if model.name else None
    if model.init == "pretrained" and folder is not None and folder.is_dir():
        found = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
        files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in found]
    drawn = recipe.seed if model.init == "scratch" else None
    settings = model.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    text = json.dumps([recipe.task, settings, files, drawn, recipe.precision])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
