"""Small trainings, each run once and shared by the tests of a session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dslm.run.checkpoints import complete_checkpoints
from dslm.run.directory import RunDirectory
from dslm.run.events import Step
from dslm.run.history import read_history
from dslm.worker.data.tokenizer import train_tokenizer
from tests.processes import HANGS
from tests.support.warm import warm_dslm
from tests.worker.faults import held_at
from tests.worker.preparing import WORDS

# A Llama of two layers on sixty documents
SMALL = {
    "duration.steps": 10,
    "log.every": 1,
    "data.max_documents": 60,
    "data.sequence_length": 64,
    "model.architecture.hidden_size": 64,
    "model.architecture.intermediate_size": 128,
    "model.architecture.num_hidden_layers": 2,
    "model.architecture.num_attention_heads": 4,
    "batch.global_size": 8,
    "batch.micro_size": 2,
    "checkpoint.every": "null",
    "evaluation.max_samples": 13,  # the last of 4 passes on two ranks isn't full
    "evaluation.sample": "null",
}
_LONGEST = 500.0  # seconds; operators may have to be built first
# a mixture of its sizes
EXPERTS: dict[str, Any] = {
    "model__architecture__model_type": "qwen3_moe",
    "model__architecture__num_key_value_heads": 2,
    "model__architecture__head_dim": 16,
    "model__architecture__moe_intermediate_size": 32,
    "model__architecture__num_experts": 8,
    "model__architecture__num_experts_per_tok": 2,
}
Train = Callable[..., Path]


def _argv(run: Path, recipe: str, given: dict[str, Any]) -> list[str]:
    settings = [word for key, value in given.items() for word in ("-s", f"{key}={value}")]
    return [*warm_dslm(), "train", *recipe.split(), "-o", str(run), *settings]


def run_dslm(folder: Path, recipe: str, given: dict[str, Any]) -> Path:
    """Run `dslm train` of a recipe (or `--model …`) with settings, on warm ranks; its directory."""
    run = folder / "run"
    done = subprocess.run(
        _argv(run, recipe, given),
        capture_output=True,
        text=True,
        timeout=_LONGEST,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    return run


def run_killed(
    folder: Path, recipe: str, given: dict[str, Any], *, at: int, then: dict[str, Any] | None = None
) -> Path:
    """The same, killed with -9 on rank 0 at a step, and brought to its end by a second command.

    `then` are settings that the second command changes.
    """
    run = folder / "run"
    kill_at(_argv(run, recipe, given), run, at, checkpoint_every=given["checkpoint.every"])
    run_dslm(folder, recipe, {**given, **(then or {})})
    again = [step.step for step in read_history(RunDirectory(run)).all(Step) if step.attempt == 2]
    assert min(again) > 1, "it began again instead of going on"
    return run


def kill_at(argv: Sequence[str], run: Path, at: int, *, checkpoint_every: int) -> None:
    """Train until a step and the last checkpoint before it are there, and kill rank 0 with -9.

    No further step is made: else a training may be at its end before it is killed.
    """
    saved = at - at % checkpoint_every
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            argv, stderr=output, stdout=output, env={**os.environ, **held_at(at)}
        )
        deadline = time.monotonic() + _LONGEST
        while not (_has_made(run, at) and (not saved or _has_saved(run, saved))):
            if process.poll() is not None or time.monotonic() > deadline:
                output.seek(0)
                pytest.fail(f"step {at} wasn't made and saved before:\n{output.read()}")
            time.sleep(0.02)
        os.kill(newest_pid(run, 0), signal.SIGKILL)
        assert process.wait(HANGS) == 1


def newest_pid(run: Path, rank: int) -> int:
    """The process of a rank in the newest attempt that has begun."""
    statuses = run.glob(f"logs/attempt-*/rank-{rank}.json")
    newest = max(statuses, key=lambda file: int(file.parent.name.rpartition("-")[2]))
    pid: int = json.loads(newest.read_text())["pid"]
    return pid


def _has_made(run: Path, step: int) -> bool:
    return step in (made.step for made in read_history(RunDirectory(run)).all(Step))


def _has_saved(run: Path, step: int) -> bool:
    folder = run / "checkpoints"
    return folder.is_dir() and step in (one.step for one in complete_checkpoints(folder))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for prepared data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A small one that knows the words of the tests."""
    return train_tokenizer([" ".join(WORDS)] * 20, 300)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The run of the small quickstart with these settings (`__` where keys have a dot), made once.

    `trained(ranks=2, parallel__zero_stage=3)`; whatever the order, one training is run only once.
    """
    known: dict[str, Path] = {}

    def run(*, ranks: int, **settings: Any) -> Path:
        given = {**SMALL, "parallel.ranks": ranks, "parallel.offload": "none"}
        given |= {key.replace("__", "."): value for key, value in settings.items()}
        key = str(sorted(given.items()))
        if key not in known:
            known[key] = run_dslm(tmp_path_factory.mktemp("trained"), "quickstart", given)
        return known[key]

    return run


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    steps = read_history(RunDirectory(run)).all(Step)
    return [step.loss for step in steps if step.loss is not None]
