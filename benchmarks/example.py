"""`dslm train` against transformers' example run_clm.py, started as its users start it.

The script is of the installed transformers' version: from the file that RUN_CLM names, or
downloaded from the version's tag. Model, tokenizer, batch, precision, length and stage are the
same; each side has its own defaults for everything else.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import yaml

from benchmarks.commands import BIN, checked, operators, training
from benchmarks.training import MODEL
from dslm.host.network import free_port
from dslm.recipe.load import read_resolved
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history

REPEATS = 3
STEPS = 40
WARM = 10  # steps that aren't counted, and steps between two logs
FILE = "RUN_CLM"
_URL = (
    "https://raw.githubusercontent.com/huggingface/transformers/"
    "v{}/examples/pytorch/language-modeling/run_clm.py"
)
_VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    "PYTHONUNBUFFERED": "1",
    **operators(),
}
Speed = tuple[float, float]  # seconds to the end of the first step, steps per second after some


@dataclass(frozen=True, kw_only=True)
class Example:
    """What the script is given: the files of a run of dslm, and a corpus."""

    script: Path
    folder: Path
    run: RunDirectory

    def arguments(self) -> list[str]:
        """The script and its arguments, the same however it is started."""
        recipe = read_resolved(self.run.recipe)
        config = json.loads(self.run.ds_config.read_text())
        given = {
            "config_name": self.folder / "model",
            "tokenizer_name": self.run.path / "tokenizer",
            "train_file": self.folder / "corpus.txt",
            "output_dir": self.folder / f"out-{time.monotonic_ns()}",
            "block_size": recipe.data.sequence_length,
            "per_device_train_batch_size": config["train_micro_batch_size_per_gpu"],
            "gradient_accumulation_steps": config["gradient_accumulation_steps"],
            "learning_rate": recipe.optimizer.lr,
            "max_steps": STEPS,
            "logging_steps": WARM,
            "save_strategy": "no",
            "report_to": "none",
        }
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        flags = ["--do_train", "--use_cpu", "--logging_first_step", "--disable_tqdm=true"]
        return [str(self.script), *words, *flags]

    def write(self) -> None:
        """Write the model's config, the corpus and the settings of both launchers."""
        from transformers import AutoConfig

        sizes = dict(read_resolved(self.run.recipe).model.architecture)
        kind = sizes.pop("model_type")
        AutoConfig.for_model(kind, **sizes).save_pretrained(self.folder / "model")
        sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:150]
        text = "\n".join(source.read_text(errors="ignore") for source in sources)
        (self.folder / "corpus.txt").write_text(text)
        auto = (
            "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size",
            "gradient_clipping",
        )  # fmt: skip
        config = {"zero_optimization": {"stage": 2}, **dict.fromkeys(auto, "auto")}
        (self.folder / "deepspeed.json").write_text(json.dumps(config))

    def by_deepspeed(self) -> Speed:
        """With the `deepspeed` command."""
        start = [sys.executable, str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port"]
        config = ["--deepspeed", str(self.folder / "deepspeed.json")]
        return _measured([*start, str(free_port()), *self.arguments(), *config])

    def by_accelerate(self) -> Speed:
        """With `accelerate launch` and its own file, as `accelerate config` writes it."""
        config = json.loads(self.run.ds_config.read_text())
        settings = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {
                "zero_stage": 2,
                "gradient_accumulation_steps": config["gradient_accumulation_steps"],
                "gradient_clipping": 1.0,
                "offload_optimizer_device": "none",
                "offload_param_device": "none",
                "zero3_init_flag": False,
            },
            "mixed_precision": "no",
            "num_machines": 1,
            "num_processes": 2,
            "use_cpu": True,
            "main_process_port": free_port(),
        }
        file = self.folder / "accelerate.yaml"
        file.write_text(yaml.safe_dump(settings))
        start = [str(BIN / "accelerate"), "launch", "--config_file", str(file)]
        return _measured([*start, *self.arguments()])


def _measured(argv: list[str]) -> Speed:
    """Run the script, and take the time of each line that it logs a loss in."""
    began = time.time()
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **_VARIABLES},
    )
    assert process.stdout is not None
    said, logged = [], []
    for line in process.stdout:
        said.append(line)
        if "'loss'" in line:
            logged.append(time.time())
    if process.wait():
        sys.exit(f"{' '.join(argv)} failed:\n{''.join(said[-60:])}")
    first, warm, *_, last = logged  # of steps 1, 10, 20 …
    return first - began, (STEPS - WARM) / (last - warm)


def _dslm(folder: Path) -> tuple[RunDirectory, Speed]:
    run = RunDirectory(folder / f"run-{time.monotonic_ns()}")
    settings = {
        **MODEL, "parallel.zero_stage": 2, "duration.steps": STEPS, "log.every": WARM,
        "checkpoint.every": "null", "evaluation.sample": "null", "data.eval": 0,
    }  # fmt: skip
    began = time.time()
    checked(training(run.path, settings))
    ends = {e.step: e.time for e in read_history(run).steps}
    return run, (ends[1] - began, (STEPS - WARM) / (ends[STEPS] - ends[WARM]))


def _script(folder: Path) -> tuple[Path, str] | str:
    """The script and where it is from, or why it can't be had."""
    if find_spec("evaluate") is None:
        return "run_clm.py imports the package evaluate: `pip install evaluate`"
    named = os.environ.get(FILE)
    if named:
        script = Path(named).absolute()
        asks = re.search(r'check_min_version\("([\w.]+)"\)', script.read_text())
        return script, f"a file, of transformers {asks.group(1) if asks else '?'}"
    url = _URL.format(version("transformers"))
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = answer.read()
    except OSError as failure:
        return f"{url} can't be had ({failure}): `{FILE}=FILE make bench` takes it from a file"
    script = folder / "run_clm.py"
    script.write_bytes(content)
    return script, f"the tag of transformers {version('transformers')}"


def report() -> str:
    """The table: medians of alternating runs, and of their ratios."""
    title = "## Against transformers' example script\n\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = _script(folder)
        if isinstance(found, str):
            return f"{title}Not measured: {found}.\n"
        script, origin = found
        run, _ = _dslm(folder)  # builds DeepSpeed's operator and prepares the data; doesn't count
        example = Example(script=script, folder=folder, run=run)
        example.write()
        example.by_deepspeed()  # tokenises and caches; doesn't count
        others: dict[str, Callable[[], Speed]] = {
            "`deepspeed run_clm.py`": example.by_deepspeed,
            "`accelerate launch run_clm.py`": example.by_accelerate,
        }
        ours: list[Speed] = []
        theirs: dict[str, list[Speed]] = {title: [] for title in others}
        for _ in range(REPEATS):
            ours.append(_dslm(folder)[1])
            for way, measure in others.items():
                theirs[way].append(measure())
    mine_rate, mine_start = median(s[1] for s in ours), median(s[0] for s in ours)
    lines = [
        f"{title}run_clm.py (from {origin}), started as its users start it: a Llama of 2.4M "
        "parameters, 2 CPU ranks, ZeRO-2, fp32, sequences of the same length and number, "
        f"{STEPS - WARM} steps after {WARM} to warm up; everything else is each side's default. "
        f"Medians of {REPEATS} alternating rounds, and of their ratios: above 1 dslm is the "
        "faster.\n",
        "| started with | steps/s | dslm's ratio | Enter to first step | dslm's ratio |",
        "|---|---|---|---|---|",
        f"| `dslm train` | {mine_rate:.3f} | | {mine_start:.1f} s | |",
    ]
    for way, speeds in theirs.items():
        rate = median(mine[1] / other[1] for mine, other in zip(ours, speeds, strict=True))
        start = median(other[0] / mine[0] for mine, other in zip(ours, speeds, strict=True))
        lines.append(
            f"| {way} | {median(s[1] for s in speeds):.3f} | {rate:.2f} "
            f"| {median(s[0] for s in speeds):.1f} s | {start:.2f} |"
        )
    return "\n".join(lines) + "\n"
