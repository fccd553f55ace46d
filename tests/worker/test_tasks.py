"""Every task trains on real data that is on this machine; two ranks learn what one learns.

One rank takes a global batch at once; two take it in two micro batches each. The number of learnt
tokens differs between these (prompts, masks, documents of any length), so a mean of means would
give other losses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Eval
from dslm.run.history import read_history
from tests.worker.conftest import losses, run_dslm

pytestmark = pytest.mark.slow

NO_DROPOUT = {
    "model.architecture.hidden_dropout_prob": 0.0,
    "model.architecture.attention_probs_dropout_prob": 0.0,
}
# task: metric, whether more of it is better, global batch, and what makes it short and repeatable
TASKS: dict[str, tuple[str, bool, int, dict[str, Any]]] = {
    "mlm": ("loss", False, 16, {"data.max_documents": 40, "data.packing": "false", **NO_DROPOUT}),
    "sft": ("loss", False, 8, {"data.max_documents": 1000, "data.packing": "false"}),
    **dict.fromkeys(
        ("dpo", "orpo", "kto"), ("rewards/margins", True, 8, {"data.max_documents": 1000})
    ),
    "reward": ("accuracy", True, 8, {"data.max_documents": 1000}),
    "seq2seq": (
        "loss", False, 32, {"data.max_documents": 1000, "model.architecture.dropout_rate": 0.0},
    ),
    "classify": ("loss", False, 32, {"optimizer.lr": 5e-4, **NO_DROPOUT}),
    "vision": ("accuracy", True, 64, {"duration.steps": 80, "evaluation.every": 20}),
    "sequence": ("loss", False, 16, {"data.max_documents": 500}),
}  # fmt: skip
# those of the purposes are in test_purposes
BY_THEMSELVES = ("mlm", "seq2seq", "classify", "vision", "sequence")
Run = Callable[[str, int], Path]


def _settings(task: str, ranks: int) -> dict[str, Any]:
    _, _, size, settings = TASKS[task]
    return {
        "duration.steps": 30, "evaluation.every": 5, "evaluation.max_samples": 64,
        "evaluation.sample": "null", "log.every": 1, "parallel.ranks": ranks,
        "batch.global_size": size, "batch.micro_size": size if ranks == 1 else size // 4,
        **settings,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of a task on a number of ranks, made once."""
    made: dict[tuple[str, int], Path] = {}

    def of(task: str, ranks: int) -> Path:
        if (task, ranks) not in made:
            folder = tmp_path_factory.mktemp(f"{task}-{ranks}")
            made[task, ranks] = run_dslm(folder, f"quickstart-{task}", _settings(task, ranks))
        return made[task, ranks]

    return of


def _metrics(run: Path, name: str) -> list[float]:
    evaluations = read_history(RunDirectory(run)).all(Eval)
    found = [e.loss if name == "loss" else e.metrics[name] for e in evaluations]
    return [value for value in found if value is not None]


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_of_a_task_moves(task: str, run: Run) -> None:
    metric, more, *_ = TASKS[task]
    found = _metrics(run(task, 2), metric)
    assert len(found) >= 4
    evaluated = [e.step for e in read_history(RunDirectory(run(task, 2))).all(Eval)]
    assert len(evaluated) == len(set(evaluated)), "a step was evaluated twice"
    assert found[-1] > found[0] if more else found[-1] < found[0], found
    assert (run(task, 2) / "model" / "config.json").is_file()


@pytest.mark.parametrize("task", BY_THEMSELVES)
def test_two_ranks_give_the_losses_and_the_metric_of_one(task: str, run: Run) -> None:
    together, alone = run(task, 2), run(task, 1)
    assert losses(together)[:10] == pytest.approx(losses(alone)[:10], abs=1e-4)
    metric = TASKS[task][0]
    assert _metrics(together, metric)[0] == pytest.approx(_metrics(alone, metric)[0], abs=1e-3)


def test_no_layer_is_left_out_at_random(tmp_path: Path) -> None:
    """A config may ask for it; ranks that leave out other layers would crash in the first step."""
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 3)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 32)
    dropped = dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), 0.5) | {"dropout": 0.0}
    bart = {"model_type": "bart", "vocab_size": 2048, "max_position_embeddings": 64}
    given = {
        "model.architecture": json.dumps(bart | sizes | dropped),
        "duration.steps": 4, "evaluation.every": 4, "data.max_documents": 300, "log.every": 1,
    }  # fmt: skip
    alone, together = (
        run_dslm(
            tmp_path / str(ranks),
            "quickstart-seq2seq",
            {**_settings("seq2seq", ranks), **given, "parallel.zero_stage": 2},
        )
        for ranks in (1, 2)
    )
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
