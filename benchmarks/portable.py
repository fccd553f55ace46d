"""Portable checkpoints: writing and reading one against `cp` of the same files, with memory.

One rank in this process, so that nothing but the checkpoint is measured: an engine of DeepSpeed
with a Llama of 160 million parameters in fp32 and the moments of Adam.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import psutil

from dslm.host.network import free_port

REPEATS = 3
_SIZES = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 11, "vocab_size": 4096,
    "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip


@contextmanager
def _peak(found: list[int]) -> Iterator[None]:
    """Note the highest anonymous memory meanwhile, beyond what there was before."""
    process, done = psutil.Process(), threading.Event()

    def used() -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)

    before = highest = used()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found.append(highest - before)


def _engine() -> Any:
    import deepspeed
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    deepspeed.init_distributed("gloo")
    model = LlamaForCausalLM(LlamaConfig(**_SIZES))
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, config=config)
    ids = torch.ones((1, 8), dtype=torch.long)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    return engine


def _seconds(work: Callable[[], object]) -> float:
    os.sync()
    start = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - start


def report() -> str:
    """The table."""
    import torch

    from dslm.worker.portable import read_portable, write_portable

    engine = _engine()
    base = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda _: 1.0)
    trainer = SimpleNamespace(model_wrapped=engine, lr_scheduler=schedule)
    largest = max(p.numel() for p in engine.module.parameters()) * 4
    times: dict[str, list[float]] = {"write": [], "copy": [], "read": [], "copied again": []}
    memory: dict[str, list[int]] = {"write": [], "read": []}
    with tempfile.TemporaryDirectory() as name:
        folder, copy = Path(name) / "checkpoint", Path(name) / "copy"
        for _ in range(REPEATS):
            for each in (folder, copy):
                shutil.rmtree(each, ignore_errors=True)
            folder.mkdir()
            with _peak(memory["write"]):
                times["write"].append(_seconds(lambda: write_portable(trainer, folder)))
            times["copy"].append(_seconds(lambda: shutil.copytree(folder, copy)))
            with _peak(memory["read"]):
                times["read"].append(_seconds(lambda: read_portable(engine, folder)))
            shutil.rmtree(copy)
            times["copied again"].append(_seconds(lambda: shutil.copytree(folder, copy)))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    rows = []
    for what, beside in (("write", "copy"), ("read", "copied again")):
        ours, cp = median(times[what]), median(times[beside])
        rows.append(
            f"| {what} | {ours:.2f} s | {cp:.2f} s | {cp / ours:.2f} "
            f"| {max(memory[what]) / 2**30:.2f} GiB |"
        )
    return "\n".join(
        [
            "## Portable checkpoints\n",
            f"A checkpoint of {size / 1e9:.2f} GB (160 million parameters in fp32 with Adam's "
            f"moments, the largest tensor {largest / 2**20:.0f} MiB), one rank, ZeRO 2; medians of "
            f"{REPEATS} alternating times, beside copying the same files, both to the disk. Memory "
            "is the highest beyond the engine's own.\n",
            "| | portable | copy | copy ÷ portable | memory |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
