"""Attention within documents by their lengths, against a mask; and layouts against plain ZeRO.

The same recipe each time, alternating: what differs is one key.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.commands import checked, training
from dslm.run.directory import RunDirectory
from dslm.run.events import Accuracy
from dslm.run.history import read_history

REPEATS = 2
_WARM = 2  # steps that aren't counted
# name, tokens of a sample, steps
_PACKS = (("quickstart", 128, 12), ("documents of Python's sources", 1024, 8))
_WIDE = {
    "model.tokenizer.vocab_size": 4096, "model.architecture.vocab_size": 4096,
    "model.architecture.hidden_size": 192, "model.architecture.intermediate_size": 512,
    "model.architecture.num_hidden_layers": 4, "model.architecture.num_attention_heads": 6,
    "model.architecture.max_position_embeddings": 4096, "data.sequence_length": 1024,
}  # fmt: skip
_COMMON = {
    "log.every": 1, "checkpoint.every": "null", "evaluation.sample": "null", "data.eval": 0,
    "precision": "fp32", "parallel.offload": "none",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """Steps a second after the first ones, peak of a rank beyond its process, and the losses."""

    speed: float
    memory: int
    losses: tuple[float, ...]


def trained(folder: Path, settings: dict[str, object]) -> Measured:
    """Train, and say how it went."""
    run = folder / f"run-{len(list(folder.iterdir()))}"
    checked(training(run, {**_COMMON, **settings}))
    history = read_history(RunDirectory(run))
    steps = history.steps
    accuracy = history.last(Accuracy)
    peak = (accuracy.measured_bytes or 0) - (accuracy.process_bytes or 0) if accuracy else 0
    return Measured(
        speed=(len(steps) - _WARM) / (steps[-1].time - steps[_WARM - 1].time),
        memory=peak,
        losses=tuple(step.loss or 0.0 for step in steps),
    )


def alternating(folder: Path, ways: dict[str, dict[str, object]]) -> dict[str, list[Measured]]:
    """Each way as often, in turn; a first run of all doesn't count: it prepares data."""
    trained(folder, next(iter(ways.values())))
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, settings in ways.items():
            found[name].append(trained(folder, settings))
    return found


def packed() -> str:
    """The table of attention."""
    lines = [
        "## Packed documents\n",
        "Attention by the documents' lengths (`model.attention: auto`) and with a mask (`sdpa`), 2 "
        f"CPU ranks, fp32, medians of {REPEATS} alternating runs; memory is a rank's peak beyond "
        "its process.\n",
        "| samples | by lengths, steps/s | with a mask, steps/s | ratio | memory, MiB | MiB "
        "| ratio | losses differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for what, length, steps in _PACKS:
            model = {} if length < 1024 else _WIDE
            base: dict[str, object] = {
                **model, "data.sequence_length": length, "duration.steps": steps,
                "batch.global_size": 4, "batch.micro_size": 2, "parallel.zero_stage": 2,
            }  # fmt: skip
            ways = {way: {**base, "model.attention": way} for way in ("auto", "sdpa")}
            folder = Path(name) / what.split()[0]
            folder.mkdir()
            found = alternating(folder, ways)
            fast, slow = (median(each.speed for each in found[way]) for way in ways)
            little, much = (median(each.memory for each in found[way]) for way in ways)
            off = max(
                abs(a - b)
                for a, b in zip(found["auto"][0].losses, found["sdpa"][0].losses, strict=True)
            )
            memory = "| – | – | –"  # where the process had more before it trained
            if little > 0 and much > 0:
                memory = f"| {little / 2**20:,.0f} | {much / 2**20:,.0f} | {little / much:.2f}"
            lines.append(
                f"| {what}, {length} tokens | {fast:.3f} | {slow:.3f} | {fast / slow:.2f} "
                f"{memory} | {off:.0e} |"
            )
    return "\n".join(lines) + "\n"


def layouts() -> str:
    """The table of layouts."""
    base: dict[str, object] = {
        **_WIDE, "duration.steps": 8, "batch.global_size": 4, "batch.micro_size": 2,
        "parallel.zero_stage": 1,
    }  # fmt: skip
    ways: dict[str, dict[str, object]] = {
        "ZeRO 1": dict(base),
        "Ulysses 2, ZeRO 1": {**base, "parallel.sequence": 2},
        "AutoTP 2, ZeRO 1": {**base, "parallel.tensor": 2},
    }
    with tempfile.TemporaryDirectory() as name:
        found = alternating(Path(name), ways)
    plain = median(each.speed for each in found["ZeRO 1"])
    lines = [
        "## Layouts\n",
        "A Llama of 2.4M parameters, samples of 1,024 tokens, 2 CPU ranks over gloo, fp32, medians "
        f"of {REPEATS} alternating runs. Ranks of one machine exchange through its memory; what is "
        "shared here would fit without.\n",
        "| layout | steps/s | ratio | memory of a rank, MiB |",
        "|---|---|---|---|",
    ]
    for way, each in found.items():
        speed = median(one.speed for one in each)
        memory = median(one.memory for one in each)
        lines.append(f"| {way} | {speed:.3f} | {speed / plain:.2f} | {memory / 2**20:,.0f} |")
    return "\n".join(lines) + "\n"
