"""Checkpoints that know no layout: each parameter and each of its moments whole, in safetensors.

A folder `portable` in a checkpoint has a folder for each of them (`weight`, `exp_avg`, …) with an
index in transformers' form, and `state.json` with what is counted. Written and read a tensor at a
time: a file is what a gibibyte of tensors makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DeepSpeedSchedulerWrapper
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import trainer as trainer_module
from transformers.trainer import SCHEDULER_NAME

from dslm.files import write_json
from dslm.recipe.schema import Checkpoint
from dslm.worker.layout.ranks import Layout
from dslm.worker.layout.whole import WEIGHT, WholeState, buffers
from dslm.worker.tensor_files import write_safetensors
from dslm.worker.zero_tensors import StoredTensor

PORTABLE = "portable"
BUFFERS = "buffers"
STATE = "state.json"
_INDEX = "model.safetensors.index.json"  # as transformers names it
_FILE_BYTES = 2**30
# what DeepSpeed's engine counts beside its optimizer
COUNTED = ("global_steps", "global_samples", "skipped_steps", "micro_steps")

Named = Iterable[tuple[str, torch.Tensor]]


def is_portable(settings: Checkpoint, layout: Layout) -> bool:
    """Return whether a run's checkpoints have this form: asked for, or its ranks share layers."""
    return settings.format == "portable" or layout.shares_parameters


def with_portable() -> None:
    """Let transformers' Trainer load portable checkpoints as well as DeepSpeed's own."""
    native = trainer_module.deepspeed_load_checkpoint

    def load(engine: Any, path: str, **settings: Any) -> None:
        folder = Path(path)
        if (folder / PORTABLE / STATE).is_file():
            read_portable(engine, folder)
        else:
            native(engine, path, **settings)

    trainer_module.deepspeed_load_checkpoint = load


def write_portable(trainer: Any, folder: Path) -> None:
    """Write the state of a training; all ranks call, rank 0 writes."""
    engine, first = trainer.model_wrapped, dist.get_rank() == 0
    whole = WholeState(engine)
    for key in whole.keys:
        found = ((name, whole.read(name, key)) for name in whole.names)
        if first:
            write_tensors(folder / PORTABLE / key, found)
        else:
            for _ in found:  # takes part in gathering, and keeps nothing
                pass
    if not first:
        return
    write_tensors(folder / PORTABLE / BUFFERS, buffers(engine.module))
    scheduler = trainer.lr_scheduler
    if isinstance(scheduler, DeepSpeedSchedulerWrapper):
        schedule = engine.lr_scheduler.state_dict()
    else:
        schedule = None
        torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)
    state = {
        "keys": whole.keys,
        "optimizer_step": whole.step,
        "schedule": schedule,
        "counted": {name: getattr(engine, name) for name in COUNTED},
        "loss_scale": _loss_scale(engine),
    }
    write_json(folder / PORTABLE / STATE, state)


def read_portable(engine: Any, folder: Path) -> None:
    """Put the state of a portable checkpoint into an engine of any layout; all ranks call.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    state = json.loads((folder / PORTABLE / STATE).read_text(encoding="utf-8"))
    whole = WholeState(engine)
    stored = {key: Tensors(folder / PORTABLE / key) for key in state["keys"]}
    missing = set(whole.names) ^ set(stored[WEIGHT].names)
    if missing:
        what = ", ".join(sorted(missing)[:3])
        raise ValueError(f"the checkpoint is of another model: {what}")
    whole.begin(state["keys"], state["optimizer_step"])
    for key, tensors in stored.items():
        for name in whole.names:
            whole.write(name, key, tensors.read(name))
    kept = Tensors(folder / PORTABLE / BUFFERS)
    for name, value in buffers(engine.module):
        if name in kept.names:
            value.copy_(kept.read(name))
    if state["schedule"] is not None and engine.lr_scheduler is not None:
        load_schedule(engine.lr_scheduler, state["schedule"])
    _continue_rates(
        engine, state["schedule"] or torch.load(folder / SCHEDULER_NAME, weights_only=True)
    )
    for name, count in state["counted"].items():
        setattr(engine, name, count)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and state["loss_scale"] is not None:
        scaler.cur_scale = state["loss_scale"]


def load_schedule(schedule: Any, kept: dict[str, Any]) -> None:
    """Load what was kept of a schedule, also where it was of more or fewer groups of parameters.

    DeepSpeed puts experts that ranks share into groups of their own, behind the group that they
    are from and with its rates.
    """
    own = vars(schedule)
    schedule.load_state_dict({name: _of_groups(each, own.get(name)) for name, each in kept.items()})


def _of_groups(kept: Any, own: Any) -> Any:
    """A value of each group, for as many groups as there are now; other values as they are."""
    if not (isinstance(kept, list) and isinstance(own, list) and kept):
        return kept
    return [kept[min(number, len(kept) - 1)] for number in range(len(own))]


def _continue_rates(engine: Any, schedule: dict[str, Any]) -> None:
    """Set the learning rates that were reached; a schedule by itself sets them at its next step."""
    if "last_batch_iteration" in schedule:  # DeepSpeed's, which know the rates of a step
        engine.lr_scheduler.step(schedule["last_batch_iteration"])
        return
    rates = schedule.get("_last_lr") or []  # torch's, which keep them
    for number, group in enumerate(engine.optimizer.param_groups if rates else ()):
        group["lr"] = rates[min(number, len(rates) - 1)]


def _loss_scale(engine: Any) -> float | None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return float(scaler.cur_scale) if scaler is not None else None


class Tensors:
    """The tensors in a folder of safetensors files with an index, each read when it is wanted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        self._files: dict[str, str] = index["weight_map"]

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return list(self._files)

    def read(self, name: str) -> torch.Tensor:
        """Read one."""
        with safe_open(self._folder / self._files[name], framework="pt") as tensors:
            found: torch.Tensor = tensors.get_tensor(name)
        return found

    def mapped(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of them, as views of their files."""
        for file in sorted(set(self._files.values())):
            yield from load_file(self._folder / file).items()


def write_tensors(folder: Path, tensors: Named) -> None:
    """Write tensors to files of about a gibibyte, and an index of them."""
    folder.mkdir(parents=True)
    files: dict[str, str] = {}
    total = 0
    for number, part in enumerate(_parts(tensors), 1):
        file = f"model-{number:05d}.safetensors"
        stored = {name: StoredTensor(t.shape, t.dtype, (t,)) for name, t in part.items()}
        with (folder / file).open("wb") as stream:
            write_safetensors(stream, stored)
        files |= dict.fromkeys(part, file)
        total += sum(value.nbytes for value in part.values())
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _parts(tensors: Named) -> Iterator[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in tensors:
        part[name] = value.detach().cpu()
        size += value.nbytes
        if size >= _FILE_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part
