"""Training: `dslm train` against a DeepSpeed loop written by hand, same model, data and config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from dslm.network import free_port
from dslm.recipe.load import read_resolved
from dslm.run.events import read_events

REPEATS = 3
STEPS = 40
WARM = 10  # steps that aren't counted
# 2.4M parameters: large enough that a step is mostly arithmetic, as it is with a real model
MODEL = {
    "model.tokenizer.vocab_size": 4096, "model.architecture.vocab_size": 4096,
    "model.architecture.hidden_size": 192, "model.architecture.intermediate_size": 512,
    "model.architecture.num_hidden_layers": 4, "model.architecture.num_attention_heads": 6,
    "data.sequence_length": 256,
}  # fmt: skip
BIN = Path(sys.executable).parent
HANDWRITTEN = Path(__file__).with_name("handwritten.py")


def _dslm(folder: Path, stage: int) -> tuple[float, float]:
    """Seconds to the end of the first step, and steps per second after it."""
    run = folder / f"stage-{stage}-{time.monotonic_ns()}"
    settings = {
        **MODEL, "parallel.zero_stage": stage, "duration.steps": STEPS, "log.every": WARM,
        "checkpoint.every": "null", "evaluation.sample": "null", "data.eval": 0,
    }  # fmt: skip
    argv = [str(BIN / "dslm"), "train", "quickstart", "-o", str(run)]
    for key, value in settings.items():
        argv += ["-s", f"{key}={value}"]
    start = time.time()
    _checked(argv)
    events, _ = read_events(run / "events.jsonl")
    ends = {e["step"]: e["time"] for e in events if e["event"] == "step"}
    return ends[1] - start, (STEPS - WARM) / (ends[STEPS] - ends[WARM])


def _handwritten(folder: Path, stage: int) -> tuple[float, float]:
    """The same of the loop, with the config of the newest run at this stage."""
    run = sorted(folder.glob(f"stage-{stage}-*"))[-1]
    out = folder / "ends.json"
    argv = [
        sys.executable, str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port",
        str(free_port()), "--no_local_rank", str(HANDWRITTEN), str(run), str(_data(run)), str(out),
    ]  # fmt: skip
    start = time.time()
    _checked(argv, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    ends = json.loads(out.read_text())
    return ends[0] - start, (STEPS - WARM) / (ends[STEPS - 1] - ends[WARM - 1])


def _checked(argv: list[str], **environment: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")


def _data(run: Path) -> Path:
    """The file where dslm keeps the packed samples of a run."""
    from transformers import AutoTokenizer

    from dslm.worker.data.prepare import cache_folder, fingerprint

    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    folder = cache_folder() / fingerprint(read_resolved(run / "recipe.yaml"), tokenizer)
    return folder / "train-00000-of-00001.arrow"


def report() -> str:
    """The tables: medians of alternating runs."""
    speeds: dict[int, tuple[list[float], list[float]]] = {}
    first: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _dslm(folder, 2)  # builds DeepSpeed's operator and prepares the data
        for stage in (0, 1, 2, 3):
            ours, theirs = speeds.setdefault(stage, ([], []))
            for _ in range(REPEATS):
                for measure, rates, starts in (
                    (_dslm, ours, first[0]), (_handwritten, theirs, first[1]),
                ):  # fmt: skip
                    seconds, rate = measure(folder, stage)
                    rates.append(rate)
                    starts.append(seconds)
    lines = [
        "## Training speed\n",
        f"A Llama of 2.4M parameters, 2 CPU ranks, {STEPS - WARM} steps after {WARM} to warm up; "
        f"medians of {REPEATS} alternating runs each.\n",
        "| ZeRO stage | `dslm train`, steps/s | loop written by hand, steps/s | ratio |",
        "|---|---|---|---|",
    ]
    for stage, (ours, theirs) in speeds.items():
        mine, other = median(ours), median(theirs)
        lines.append(f"| {stage} | {mine:.3f} | {other:.3f} | {mine / other:.3f} |")
    mine, other = median(first[0]), median(first[1])
    lines += [
        "\n## From Enter to the first optimizer step\n",
        f"Medians of {len(first[0])} runs each; the data is prepared, the operators are built.\n",
        "| `dslm train` | `deepspeed` on the loop written by hand | difference |",
        "|---|---|---|",
        f"| {mine:.2f} s | {other:.2f} s | {mine - other:+.2f} s |",
    ]
    return "\n".join(lines) + "\n"
