"""Measure this machine: matrix products, memory copies, an all-reduce between ranks, the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from dslm.worker.answer import Tell, answer
from dslm.worker.model import DTYPES

_MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices
_COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes
_REDUCED = 2**25  # elements, fp32: 128 MiB
_WRITTEN = 2**29  # bytes
_SECONDS = 1.0  # each measurement takes at least this long
_TRIES = 3


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Measure; FLOP/s by precision, bandwidths in bytes per second.

    The request has `ranks`, `cuda` and `folder` (a disk to measure).
    """
    device = torch.device("cuda" if request["cuda"] else "cpu")
    flops = {}
    for name, dtype in DTYPES.items():
        if device.type == "cpu" and name == "fp16":
            continue  # DeepSpeed doesn't train in it there
        tell(f"matrix product, {name}")
        flops[name] = _matrix_product(device, dtype)
    tell("memory")
    memory = _memory(device)
    tell(f"all-reduce over {request['ranks']} ranks")
    link = _all_reduce(request["ranks"], device) if request["ranks"] > 1 else None
    tell("disk")
    write, read = _disk(Path(request["folder"]))
    return {
        "peak_flops": flops,
        "memory_bandwidth": memory,
        "link_bandwidth": link,
        "disk_write": write,
        "disk_read": read,
        "ranks": request["ranks"],
        "date": time.strftime("%Y-%m-%d"),
    }


def _rate(amount: float, action: Callable[[], object], device: torch.device) -> float:
    """Amount per second, the best of a few tries: other work only makes it slower."""
    action()
    best = 0.0
    for _ in range(_TRIES):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < _SECONDS / _TRIES:
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            count += 1
        best = max(best, count * amount / (time.perf_counter() - start))
    return best


def _matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    size = _MATRIX[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=torch.float32).to(dtype)
    return _rate(2.0 * size**3, lambda: left @ right, device)


def _memory(device: torch.device) -> float:
    source = torch.zeros(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # every byte is read once and written once
    return _rate(2.0 * source.numel(), lambda: target.copy_(source), device)


def _disk(folder: Path) -> tuple[float, float]:
    """Bytes per second written (until they are on the disk) and read back."""
    place = Path(tempfile.mkdtemp(prefix=".dslm-measure-", dir=folder))
    try:
        file, block = place / "file", os.urandom(2**24)
        start = time.perf_counter()
        with file.open("wb", buffering=0) as stream:
            for _ in range(_WRITTEN // len(block)):
                stream.write(block)
            os.fsync(stream.fileno())
        written = _WRITTEN / (time.perf_counter() - start)
        with file.open("rb", buffering=0) as stream:
            # what was just written must not come from memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while stream.read(len(block)):
                pass
            read = _WRITTEN / (time.perf_counter() - start)
        return written, read
    finally:
        shutil.rmtree(place)


def _all_reduce(ranks: int, device: torch.device) -> float:
    """Bytes per second that one rank sends: nccl-tests' bus bandwidth of a ring all-reduce."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, device.type, folder)
        spawn(_reducing_rank, args=arguments, nprocs=ranks)
        seconds = float((Path(folder) / "seconds").read_text())
    return 2 * (ranks - 1) / ranks * _REDUCED * 4 / seconds


def _reducing_rank(rank: int, ranks: int, kind: str, folder: str) -> None:
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
    )
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    values = torch.zeros(_REDUCED, device=device)
    best = float("inf")
    for _ in range(1 + _TRIES):  # the first one connects
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(best))
    dist.destroy_process_group()


if __name__ == "__main__":
    answer(work)
