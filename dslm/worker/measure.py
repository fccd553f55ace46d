"""Measure this machine: products, passes of small models, memory, Adam, collectives, the disk.

What comes out is seconds, as they were measured: what they say of the device is fitted elsewhere.
Each part has its share of a minute and ends in time on a slow machine, with fewer shapes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from dslm.worker.answer import Tell, answer
from dslm.worker.collectives import measured_collectives
from dslm.worker.layout.attention import DOCUMENTS, attends_plainly, watch
from dslm.worker.model_config import set_cache
from dslm.worker.number_formats import DTYPES

_COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes
_UPDATED = {"cpu": 2**24, "cuda": 2**24}  # elements that Adam updates: more than caches hold
_WRITTEN = 2**28  # bytes
_BLOCK = 2**24
# sides of products, the quickest first: squares, and the flat ones of layers
_SIDES = {
    "cpu": (64, 128, 256, 512, 1024),
    "cuda": (512, 1024, 2048, 4096, 8192),
}
_EACH = 0.12  # seconds that a measurement takes at least
_TIMES, _MOST = 5, 6  # … and so often, unless that takes so many times as long
_LONGEST = 1.0  # a product that takes longer is the last of its format
# seconds that the parts may take, of 60 in all
_PRODUCTS, _PASSES, _LINKS, _DISK = 12.0, 22.0, 10.0, 6.0


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Measure.

    The request has `ranks`, `cuda`, `folder` (a disk to measure), and `passes`: architectures of
    small models, each with the samples and lengths to run.
    """
    device = torch.device("cuda" if request["cuda"] else "cpu")
    formats = [n for n in DTYPES if device.type == "cuda" or n != "fp16"]
    products: list[dict[str, Any]] = []
    passes: list[dict[str, Any]] = []
    for number, name in enumerate(formats, 1):
        tell(f"matrix products, {name} ({number} of {len(formats)})")
        products += _products(device, name, _PRODUCTS / len(formats))
    for number, name in enumerate(formats, 1):
        tell(f"passes of small models, {name} ({number} of {len(formats)})")
        passes += _passes(request["passes"], device, name, _PASSES / len(formats))
    tell("memory")
    memory = _memory(device)
    tell("Adam on the host")
    adam = _adam(device)
    links: dict[str, list[float]] = {}
    if request["ranks"] > 1:
        tell(f"collectives of {request['ranks']} ranks")
        links = _links(request["ranks"], device)
    tell("disk")
    write, read = _disk(Path(request["folder"]), _DISK)
    return {
        "products": products,
        "passes": passes,
        "memory_bandwidth": memory,
        "host_adam": adam,
        "links": links,
        "disk_write": write,
        "disk_read": read,
        "ranks": request["ranks"],
        "date": time.strftime("%Y-%m-%d"),
    }


def _seconds(action: Callable[[], object], device: torch.device, at_least: float = _EACH) -> float:
    """Seconds of an action, the least of several: other work only makes it slower."""
    action()
    _wait(device)
    best, times, began = float("inf"), 0, time.perf_counter()
    while True:
        start = time.perf_counter()
        action()
        _wait(device)
        now = time.perf_counter()
        best, times = min(best, now - start), times + 1
        enough = now - began >= at_least and times >= _TIMES
        if enough or now - began >= _MOST * at_least:
            return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _shapes(kind: str) -> Iterator[tuple[int, int, int]]:
    """Rows, inner and columns: a square, one with few rows, one with few inner."""
    for side in _SIDES[kind]:
        yield side, side, side
        yield max(32, side // 4), side, 4 * side
        yield 4 * side, max(32, side // 4), side


def _products(device: torch.device, name: str, limit: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    began = time.perf_counter()
    for rows, inner, columns in _shapes(device.type):
        left = torch.randn(rows, inner, device=device).to(DTYPES[name])
        right = torch.randn(inner, columns, device=device).to(DTYPES[name])
        seconds = _seconds(lambda a=left, b=right: a @ b, device)  # type: ignore[misc]
        found.append(
            {
                "precision": name, "rows": rows, "inner": inner, "columns": columns,
                "element": left.element_size(), "seconds": seconds,
            }
        )  # fmt: skip
        if seconds > _LONGEST or time.perf_counter() - began > limit:
            break
    return found


def _passes(
    wanted: list[dict[str, Any]], device: torch.device, name: str, limit: float
) -> list[dict[str, Any]]:
    """Forward and backward passes of models as the trainer has them, without DeepSpeed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found: list[dict[str, Any]] = []
    began = time.perf_counter()
    for number, one in enumerate(wanted):
        sizes = dict(one["architecture"])
        config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        set_cache(config, on=False)
        model = AutoModelForCausalLM.from_config(config).to(device=device, dtype=DTYPES[name])
        model.train()
        if attends_plainly(model):
            model.set_attn_implementation(DOCUMENTS)
            watch(model)
        for samples, length in one["shapes"]:
            ids = torch.ones((samples, length), dtype=torch.long, device=device)
            # two documents in a sample, as packed ones have several
            half = torch.arange(length // 2, device=device)
            positions = torch.cat([half, half]).repeat(samples, 1)

            def train(model: Any = model, ids: Any = ids, positions: Any = positions) -> None:
                model(input_ids=ids, position_ids=positions, labels=ids).loss.backward()
                model.zero_grad(set_to_none=True)

            found.append(
                {
                    "precision": name, "model": number, "samples": samples, "length": length,
                    "seconds": _seconds(train, device, 2 * _EACH),
                }
            )  # fmt: skip
            if time.perf_counter() - began > limit:
                return found
    return found


def _memory(device: torch.device) -> float:
    source = torch.zeros(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # every byte is read once and written once
    return 2.0 * source.numel() / _seconds(lambda: target.copy_(source), device, 0.5)


def _adam(device: torch.device) -> float:
    """Parameters per second that Adam updates on the host: DeepSpeed's where it is built."""
    parameter = torch.nn.Parameter(torch.zeros(_UPDATED[device.type]))
    parameter.grad = torch.ones_like(parameter)
    optimizer: Any = torch.optim.AdamW([parameter], lr=1e-3, fused=True)
    return float(parameter.numel() / _seconds(optimizer.step, torch.device("cpu"), 0.5))


def _disk(folder: Path, limit: float) -> tuple[float, float]:
    """Bytes per second written (until they are on the disk) and read back."""
    place = Path(tempfile.mkdtemp(prefix=".dslm-measure-", dir=folder))
    try:
        file, block = place / "file", os.urandom(_BLOCK)
        start, size = time.perf_counter(), 0
        with file.open("wb", buffering=0) as stream:
            while size < _WRITTEN and time.perf_counter() - start < limit / 2:
                stream.write(block)
                os.fsync(stream.fileno())
                size += len(block)
        written = size / (time.perf_counter() - start)
        with file.open("rb", buffering=0) as stream:
            # what was just written must not come from memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while stream.read(len(block)):
                pass
            read = size / (time.perf_counter() - start)
        return written, read
    finally:
        shutil.rmtree(place)


def _links(ranks: int, device: torch.device) -> dict[str, list[float]]:
    """Latency and bandwidth of each collective between ranks of this host."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_linked_rank, args=(ranks, device.type, folder), nprocs=ranks)
        import json

        found: dict[str, list[float]] = json.loads((Path(folder) / "links.json").read_text())
    return found


def _linked_rank(rank: int, ranks: int, kind: str, folder: str) -> None:
    import json

    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
    )
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    found = measured_collectives(device, _LINKS)
    if rank == 0:
        (Path(folder) / "links.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    answer(work)
