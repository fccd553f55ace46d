"""Small trainings, each run once and shared by the tests of a session."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dslm.run.events import read_events
from dslm.worker.data.tokenizer import train_tokenizer
from tests.conftest import DSLM
from tests.worker.preparing import WORDS

# A Llama of two layers on sixty documents: a run takes about twelve seconds, nearly all of it start
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
    "evaluation.sample": "null",
}
Train = Callable[..., Path]


def train(folder: Path, recipe: str = "quickstart", *options: str, **settings: Any) -> Path:
    """Run `dslm train` in a folder; the run directory. Settings have `__` where keys have a dot."""
    given = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
    return run_dslm(folder, recipe, given, *options)


def run_dslm(folder: Path, recipe: str, given: dict[str, Any], *options: str) -> Path:
    """Run `dslm train` of any recipe with these settings; the run directory."""
    run = folder / "run"
    argv = [str(DSLM), "train", recipe, *options, "-o", str(run)]
    for key, value in given.items():
        argv += ["-s", f"{key}={value}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=500, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    return run


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
    """As `train`, but the same training is run only once in a session."""
    known: dict[str, Path] = {}

    def run(*options: str, **settings: Any) -> Path:
        key = f"{options} {sorted(settings.items())}"
        if key not in known:
            folder = tmp_path_factory.mktemp("trained")
            known[key] = train(folder, "quickstart", *options, **settings)
        return known[key]

    return run


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    events, _ = read_events(run / "events.jsonl")
    return [event["loss"] for event in events if event["event"] == "step"]
