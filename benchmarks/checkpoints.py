"""Checkpoints of more than 2 GB: saving, resuming, exporting, with time and memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.commands import BIN, checked, training
from dslm.run.directory import RunDirectory
from dslm.run.events import CheckpointSaved, Convert, Step
from dslm.run.history import read_history

# about 180 million parameters; in fp32 with AdamW a checkpoint has 16 bytes for each under ZeRO-2
MODEL = {
    "model.architecture.hidden_size": 1024, "model.architecture.intermediate_size": 4096,
    "model.architecture.num_hidden_layers": 11, "model.architecture.num_attention_heads": 16,
    "model.architecture.num_key_value_heads": 8, "data.sequence_length": 32,
    "data.max_documents": 60, "batch.global_size": 2, "batch.micro_size": 1, "data.eval": 0,
    "duration.steps": 4, "checkpoint.every": 2, "checkpoint.keep": 2, "evaluation.sample": "null",
    "log.every": 1,
}  # fmt: skip


def _train(run: Path, stage: int, ranks: int) -> None:
    argv = training(run, {**MODEL, "parallel.zero_stage": stage})
    checked([*argv, "--num-gpus", str(ranks), "--force"])


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _peak_of(argv: list[str]) -> tuple[str, float, int]:
    """Output, seconds and peak anonymous memory (bytes; files mapped from disk don't count)."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not done.wait(0.02):
            try:
                family = [root, *root.children(recursive=True)]
                used = [m.rss - m.shared for m in (p.memory_info() for p in family)]
                peak = max(peak, sum(used))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{argv} failed")
    return output, time.perf_counter() - start, peak


def _copy_seconds(folder: Path, target: Path) -> float:
    os.sync()
    start = time.perf_counter()
    shutil.copytree(folder, target)
    os.sync()
    return time.perf_counter() - start


def report() -> str:
    """The tables."""
    rows, resumed = [], []
    idle = "import torch, transformers, deepspeed, time; time.sleep(1)"
    _, _, baseline = _peak_of([sys.executable, "-c", idle])
    with tempfile.TemporaryDirectory() as name:
        for stage in (2, 3):
            run = Path(name) / f"stage-{stage}"
            _train(run, stage, 2)
            saved = read_history(RunDirectory(run)).all(CheckpointSaved)[0]
            size = _size(run / saved.path)
            output = run / "exported"
            answer, _, memory = _peak_of(
                [str(BIN / "dslm"), "export", str(run), "-o", str(output), "--json"]
            )
            seconds = json.loads(answer)["seconds"]
            copied = _copy_seconds(output, run / "copied")
            whole = run / "whole"
            checkpoint = run / "checkpoints" / "step-4"
            _, their_seconds, their_memory = _peak_of([
                sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(checkpoint), str(whole),
            ])  # fmt: skip
            rows.append(
                f"| {stage} | {size / 1e9:.2f} GB | {saved.seconds:.1f} s "
                f"| {saved.complete_seconds:.1f} s | {seconds:.1f} s | {copied:.1f} s "
                f"| {copied / seconds:.2f} | {(memory - baseline) / 2**30:.2f} GiB "
                f"| {their_seconds:.1f} s | {(their_memory - baseline) / 2**30:.2f} GiB |"
            )
            resumed.append(_resumed(run, stage))
            shutil.rmtree(run)
    return "\n".join(
        [
            "## Checkpoints\n",
            "A Llama of 160 million parameters in fp32 on 2 CPU ranks; memory is what isn't "
            "mapped from files, beyond that of a process that only imports the libraries. "
            "`zero_to_fp32` is DeepSpeed's own converter.\n",
            "| ZeRO stage | checkpoint | training stood still | complete after | export "
            "| copying what it wrote | ratio | export's memory | `zero_to_fp32` | its memory |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "\n| ZeRO stage | resume on 2 ranks, to the first step | on 1 rank | converting |",
            "|---|---|---|---|",
            *resumed,
            "",
        ]
    )


def _resumed(run: Path, stage: int) -> str:
    """Resume from step 2, on as many ranks and on one: seconds to the first step."""
    cells = []
    for ranks in (2, 1):
        copy = run.with_name(f"{run.name}-on-{ranks}")
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("exported", "copied", "whole"))
        shutil.rmtree(copy / "checkpoints" / "step-4")
        lines = (copy / "events.jsonl").read_text().splitlines(keepends=True)
        (copy / "events.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
        start = time.time()
        _train(copy, stage, ranks)
        history = read_history(RunDirectory(copy))
        first = next(step for step in history.all(Step) if step.time > start)
        cells.append(f"{first.time - start:.1f} s")
        converted = history.last(Convert)
        if converted is not None and converted.time > start:
            cells.append(f"{converted.seconds:.1f} s")
        shutil.rmtree(copy)
    return f"| {stage} | {' | '.join(cells)} |"
