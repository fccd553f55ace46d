"""A checkpoint into the portable form, from which any layout goes on; started by name.

    python -m dslm.worker.convert [--trust] CHECKPOINT STAGE FOLDER

`--trust` lets a checkpoint run code as it is loaded.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from dslm.files import write_json
from dslm.worker.portable import BUFFERS, COUNTED, PORTABLE, STATE, write_tensors
from dslm.worker.tensors_only import tensors_only
from dslm.worker.zero_tensors import StoredTensor, stored_state

_BESIDE = ("trainer_state.json", "scheduler.pt")  # of the Trainer


def convert(checkpoint: Path, zero_stage: int, folder: Path) -> None:
    """Convert a checkpoint of stage 0 to 3, a tensor at a time.

    Raises:
        InputError: it can't be put together.
    """
    found = stored_state(checkpoint, zero_stage)
    for key, tensors in found.tensors.items():
        write_tensors(folder / PORTABLE / key, _read(tensors))
    module = found.model["module"]
    kept = {name: module[name] for name in found.model.get("buffer_names") or () if name in module}
    write_tensors(folder / PORTABLE / BUFFERS, kept.items())
    state = {
        "keys": list(found.tensors),
        "optimizer_step": found.optimizer_step,
        "schedule": found.model.get("lr_scheduler"),
        "counted": {name: found.model[name] for name in COUNTED if name in found.model},
        "loss_scale": found.loss_scale,
    }
    write_json(folder / PORTABLE / STATE, state)
    for name in _BESIDE:
        if (checkpoint / name).is_file():
            shutil.copy2(checkpoint / name, folder / name)


def _read(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, tensor.read().float()) for name, tensor in tensors.items())


def main() -> None:
    """Convert."""
    trusted = sys.argv[1] == "--trust"
    checkpoint, stage, folder = sys.argv[2 if trusted else 1 :]
    with nullcontext() if trusted else tensors_only():
        convert(Path(checkpoint), int(stage), Path(folder))


if __name__ == "__main__":
    main()
