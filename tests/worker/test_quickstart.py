"""The main job as a newcomer runs it: `dslm train quickstart`, to the end."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dslm.recipe.load import read_resolved
from dslm.run import events
from dslm.run.directory import RunDirectory
from dslm.run.documents import FORMAT
from dslm.run.history import History, read_history
from dslm.worker.data.packing import packed_sample
from dslm.worker.data.prepare import prepare
from dslm.worker.tasks import task_of
from tests.conftest import DSLM

pytestmark = pytest.mark.slow


# half of its steps: the other half shows nothing that these don't
STEPS = 300
SHORTER = (f"duration.steps={STEPS}", f"checkpoint.every={STEPS // 2}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("quickstart")
    settings = [part for one in SHORTER for part in ("-s", one)]
    done = subprocess.run(
        [
            str(DSLM),
            "train",
            "quickstart",
            "-o",
            "run",
            "-s",
            "log.report_to=[tensorboard]",
            *settings,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    (folder / "screen.txt").write_text(done.stderr)
    yield folder / "run"


@pytest.fixture(scope="module")
def history(run: Path) -> History:
    return read_history(RunDirectory(run))


def test_the_loss_falls(history: History) -> None:
    losses = [step.loss or math.inf for step in history.steps]
    assert sum(losses[-3:]) / 3 < losses[0] - 2


def test_the_screen_says_what_was_made_and_what_is_next(run: Path) -> None:
    screen = (run.parent / "screen.txt").read_text()
    for words in (
        "eval step",
        "perplexity",
        "done in",
        "run/model",
        "run/checkpoints",
        "dslm runs",
    ):
        assert words in screen


def test_step_events_hold_what_the_docs_promise(history: History) -> None:
    last = history.steps[-1]
    for field in (
        "loss", "learning_rate", "grad_norm", "tokens_per_second", "samples_per_second",
        "step_seconds", "forward_seconds", "backward_seconds", "communication_seconds",
        "update_seconds", "memory_peak_bytes",
    ):  # fmt: skip
        assert getattr(last, field) is not None, field
    parts = ("forward_seconds", "backward_seconds", "communication_seconds", "update_seconds")
    assert 0 < sum(getattr(last, part) for part in parts) <= (last.step_seconds or 0) * 1.05
    names = {event.name for event in history.events}
    assert {"start", "step", "eval", "checkpoint", "end"} <= names
    end = history.last(events.End)
    assert end is not None
    sample = str(end.sample)
    assert sample.startswith("def main(")
    assert len(sample.removeprefix("def main(").strip()) > 10  # what the model wrote


def test_a_tracker_gets_the_losses(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [scalar.step for scalar in tracked.Scalars("train/loss")][-1] == STEPS


def test_the_run_directory_holds_what_reproduces_it(run: Path) -> None:
    recipe = read_resolved(run / "recipe.yaml")
    assert recipe.batch.micro_size == 8
    config = json.loads((run / "ds_config.json").read_text())
    assert "auto" not in json.dumps(config)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["versions"]["deepspeed"]
    assert manifest["attempts"][0]["status"] == "done"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        f"step-{STEPS // 2}",
        f"step-{STEPS}",
    }
    assert not list(run.rglob("training_args.bin"))


def test_every_document_of_the_run_says_its_format(run: Path) -> None:
    folders = (run, *sorted((run / "logs").iterdir()), *sorted((run / "checkpoints").iterdir()))
    foreign = {"ds_config.json", "trainer_state.json"}  # DeepSpeed's, and transformers'
    files = [file for folder in folders for file in folder.glob("*.json")]
    documents = {file for file in files if file.name not in foreign}
    assert {"manifest.json", "plan.json", "attempt.json"} <= {file.name for file in documents}
    assert {json.loads(file.read_text())["format"] for file in documents} == {FORMAT}


def test_the_model_loads_and_gives_the_reported_loss(run: Path) -> None:
    reported = read_history(RunDirectory(run)).evaluations[-1].loss
    recipe = read_resolved(run / "recipe.yaml")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    data = prepare(recipe, task_of(recipe).encoder(recipe, tokenizer), tokenizer).eval
    assert data is not None
    total, count = 0.0, 0
    with torch.no_grad():
        for index in range(len(data)):
            sample = packed_sample(data[index], recipe.data.sequence_length, pad=0)
            labels = sample["labels"][1:]
            logits = model(
                input_ids=sample["input_ids"][None],
                position_ids=sample["position_ids"][None],
                use_cache=False,  # else transformers doesn't look for several documents
            ).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    assert total / count == pytest.approx(reported, abs=1e-4)


def test_the_run_ends_with_what_was_planned_beside_what_was_measured(run: Path) -> None:
    (found,) = read_history(RunDirectory(run)).all(events.Accuracy)
    plan = json.loads((run / "plan.json").read_text())
    device = plan["memory"]["device"]
    predicted, measured = found.predicted_bytes or 0, found.measured_bytes or 0
    assert predicted == device["total"] + (found.process_bytes or 0) - device["context"]
    assert measured > 100 * 2**20
    assert found.difference == pytest.approx(predicted / measured - 1, abs=1e-3)
    assert abs(found.difference or 1) < 0.25
    assert (found.measured_step_seconds or 0) > 0
    assert {"init", "forward", "backward", "step"} <= set(found.phases)
    for phase in found.phases.values():
        assert 0 < phase.measured <= measured
    assert "planned" in (run.parent / "screen.txt").read_text()
