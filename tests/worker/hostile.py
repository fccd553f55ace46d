"""Checkpoints that would run code: a file of a real one with something planted in it.

Run as a program it is a process with torch that trains one tiny layer at every stage, saves it,
plants something in each file in turn and loads all, without and within `tensors_only`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from dslm.run.checkpoints import MANIFEST, write_manifest
from dslm.run.documents import CheckpointManifest, read_document


class Touch:
    """Pickled as a call that makes a file."""

    def __init__(self, file: Path, *, through_torch: bool = False) -> None:
        """Through torch the name is one that looks harmless: `torch.serialization.save`."""
        self._call = (torch.save, ([], str(file))) if through_torch else (open, (str(file), "w"))

    def __reduce__(self) -> Any:
        return self._call


def plant(file: Path, what: Touch) -> None:
    """Put something beside what a file of torch's holds, whatever kind of value that is."""
    held = torch.load(file, weights_only=False)
    torch.save({**held, "more": what} if isinstance(held, dict) else [held, what], file)


def sign_again(checkpoint: Path) -> None:
    """Let the manifest list the files as they are now: sizes and checksums are right."""
    write_manifest(checkpoint, read_document(CheckpointManifest, checkpoint / MANIFEST))


def _try_all(folder: Path) -> dict[str, list[str]]:
    """What was touched, by how it was loaded."""
    from contextlib import nullcontext

    import deepspeed

    from dslm.worker.tensors_only import tensors_only

    deepspeed.init_distributed("gloo", verbose=False)
    touched: dict[str, list[str]] = {"freely": [], "tensors only": [], "loaded": []}
    for stage in range(4):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
            "zero_force_ds_cpu_optimizer": False,
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}},
            "bf16": {"enabled": stage != 0},
        }
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=model.parameters(), config=config
        )
        kind = torch.bfloat16 if stage else torch.float32
        engine.backward(engine(torch.ones(1, 8, dtype=kind)).float().sum())
        engine.step()
        saved = folder / f"stage-{stage}"
        engine.save_checkpoint(str(saved))
        with tensors_only():
            engine.load_checkpoint(str(saved))  # what dslm writes itself can be read
        touched["loaded"].append(str(stage))
        for file in sorted(saved.rglob("*.pt")):
            whole = file.read_bytes()
            mark = folder / f"touched-{stage}-{file.name}"
            plant(file, Touch(mark, through_torch=True))
            for way, loading in (("tensors only", tensors_only()), ("freely", nullcontext())):
                with loading:
                    try:
                        engine.load_checkpoint(str(saved))
                    except Exception as failure:  # noqa: BLE001
                        print(way, file.name, repr(failure)[:200], file=sys.stderr)
                if mark.exists():
                    touched[way].append(mark.name)
                mark.unlink(missing_ok=True)
            file.write_bytes(whole)
    return touched


if __name__ == "__main__":
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2],
    }  # fmt: skip
    print("\n" + json.dumps(_try_all(Path(sys.argv[1]))))
