"""Memory of long samples on a CPU: planned and measured, with `model.long_context` or without."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.commands import checked, training
from dslm.run.directory import RunDirectory
from dslm.run.events import Accuracy
from dslm.run.history import read_history

LENGTHS = (4096, 16384, 65536)
# wide where long samples are large: MLPs of eight times the hidden size, a vocabulary of 2048
MODEL = {
    "model.tokenizer.vocab_size": 2048, "model.architecture.vocab_size": 2048,
    "model.architecture.hidden_size": 64, "model.architecture.intermediate_size": 512,
    "model.architecture.num_hidden_layers": 2, "model.architecture.num_attention_heads": 4,
    "model.architecture.max_position_embeddings": 65536, "parallel.zero_stage": 0,
    "batch.micro_size": 1, "batch.global_size": 1, "duration.steps": 2, "data.eval": 0,
    "checkpoint.every": "null", "evaluation.sample": "null", "parallel.ranks": 1,
    "precision": "fp32", "log.every": 1, "parallel.offload": "none",
}  # fmt: skip


def measured(folder: Path, length: int, *, long: bool, **more: object) -> Accuracy:
    """What a training of two steps was planned to need, and needed."""
    run = folder / f"{length}-{long}"
    settings = {
        **MODEL, "data.sequence_length": length, "model.long_context": str(long).lower(), **more,
    }  # fmt: skip
    checked([*training(run, settings), "--force"])
    found = read_history(RunDirectory(run)).last(Accuracy)
    assert found is not None
    return found


def report() -> str:
    """The table: gibibytes beyond the process's own."""
    lines = [
        "## Long samples\n",
        "A Llama of 2 layers in fp32 on one CPU rank, a sample a step; the peak of the process, "
        "planned and measured, in GiB.\n",
        "| tokens | planned | measured | with `model.long_context`, planned | measured |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for length in LENGTHS:
            cells = []
            for long in (False, True):
                one = measured(Path(name), length, long=long)
                cells += [f"{(one.predicted_bytes or 0) / 2**30:.2f}"]
                cells += [f"{(one.measured_bytes or 0) / 2**30:.2f}"]
            lines.append(f"| {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
