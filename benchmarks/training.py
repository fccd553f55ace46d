"""Training: `dslm train` against a DeepSpeed loop written by hand, same model, data and config."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.commands import BIN, checked, training
from dslm.host.network import free_port
from dslm.recipe.load import read_resolved
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history

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
HANDWRITTEN = Path(__file__).with_name("handwritten.py")


def _dslm(folder: Path, stage: int, steps: int) -> float:
    """Steps per second after the first ones."""
    run = folder / f"stage-{stage}-{time.monotonic_ns()}"
    settings = {
        **MODEL, "parallel.zero_stage": stage, "duration.steps": steps, "log.every": WARM,
        "checkpoint.every": "null", "evaluation.sample": "null", "data.eval": 0,
    }  # fmt: skip
    checked(training(run, settings))
    ends = {e.step: e.time for e in read_history(RunDirectory(run)).steps}
    return (steps - WARM) / (ends[steps] - ends[WARM])


def _handwritten(folder: Path, stage: int, steps: int) -> float:
    """The same of the loop, with the config of the newest run at this stage."""
    run = sorted(folder.glob(f"stage-{stage}-*"))[-1]
    out = folder / "ends.json"
    argv = [
        sys.executable, str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port",
        str(free_port()), "--no_local_rank",
        str(HANDWRITTEN), str(run), str(data_of(run)), str(out),
    ]  # fmt: skip
    checked(argv, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    ends = json.loads(out.read_text())
    return (steps - WARM) / (ends[steps - 1] - ends[WARM - 1])


def data_of(run: Path) -> Path:
    """The file where dslm keeps the packed samples of a run."""
    from transformers import AutoTokenizer

    from dslm.worker.data.prepare import cache_folder, fingerprint

    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    folder = cache_folder() / fingerprint(read_resolved(run / "recipe.yaml"), tokenizer)
    return folder / "train-00000-of-00001.arrow"


def report() -> str:
    """Steps per second at every stage: medians of alternating runs."""
    speeds: dict[int, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in (0, 1, 2, 3):
            speeds[stage] = _alternating(folder, stage, STEPS)
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
    return "\n".join(lines) + "\n"


def _alternating(folder: Path, stage: int, steps: int) -> tuple[list[float], list[float]]:
    """What was measured of dslm and of the loop, in turn; a first run of dslm doesn't count."""
    _dslm(folder, stage, steps)  # builds DeepSpeed's operator and prepares the data
    ours, theirs = [], []
    for _ in range(REPEATS):
        ours.append(_dslm(folder, stage, steps))
        theirs.append(_handwritten(folder, stage, steps))
    return ours, theirs
