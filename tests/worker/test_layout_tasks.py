"""Tasks in layouts: what ranks that share layers, sequences or experts learn is what one learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Eval
from dslm.run.history import read_history
from dslm.run.rollouts import last_rollouts
from tests.worker.conftest import EXPERTS, SMALL, losses, run_dslm

pytestmark = pytest.mark.slow

Settings = dict[str, Any]
_MIXTURE = {key.replace("__", "."): value for key, value in EXPERTS.items()}
# all that is learnt of a sample lies in the part of one rank; the other's is padding
_UNEVEN = {"data.train": "answers.jsonl", "data.packing": "false", "data.eval": 0}
_APART = {"data.packing": "false"}
_UNTIED = {**_APART, "model.architecture.tie_word_embeddings": "false"}
_ROUNDS = {"rollout.group": 4, "rollout.max_tokens": 3}
_LLAMA = {**_APART, "model.architecture.model_type": "llama", "data.max_documents": 3000}
# task, sizes of shared work, what else
ROWS: dict[str, tuple[str, dict[str, int], Settings]] = {
    "sft, sequence": ("sft", {"sequence": 2}, {}),
    "sft, sequence, uneven": ("sft", {"sequence": 2}, _UNEVEN),
    "sft, tensor": ("sft", {"tensor": 2}, {}),
    "sft, expert": ("sft", {"expert": 2}, _MIXTURE),
    "dpo, tensor": ("dpo", {"tensor": 2}, _UNTIED),
    "orpo, tensor": ("orpo", {"tensor": 2}, _UNTIED),
    "kto, tensor": ("kto", {"tensor": 2}, _APART),
    "reward, tensor, two pairs": ("reward", {"tensor": 2, "ranks": 4}, _APART),
    "grpo, tensor": ("grpo", {"tensor": 2}, _ROUNDS),
    "classify, tensor": ("classify", {"tensor": 2}, _LLAMA),
    "items, sequence": ("sequence", {"sequence": 2}, {}),
    "items, tensor": ("sequence", {"tensor": 2}, {}),
}


def _settings(name: str, folder: Path, *, alone: bool) -> tuple[str, Settings]:
    task, sizes, more = ROWS[name]
    sizes_of_model = {k: v for k, v in SMALL.items() if k.startswith("model.architecture")}
    given: Settings = {
        **sizes_of_model, "precision": "fp32", "duration.steps": 8, "log.every": 1,
        "data.max_documents": 300, "data.sequence_length": 64, "data.eval": 0.2,
        "evaluation.max_samples": 8, "evaluation.sample": "null", "batch.global_size": 8,
        "batch.micro_size": 2, "parallel.offload": "none", "parallel.zero_stage": 1, **more,
    }  # fmt: skip
    if given.get("data.train") == "answers.jsonl":
        given["data.train"] = str(_answers(folder))
    shared = {f"parallel.{key}": size for key, size in sizes.items()}
    ranks = {"parallel.ranks": 1} if alone else {"parallel.ranks": 2, **shared}
    return f"quickstart-{task}", {**given, **ranks}


def _answers(folder: Path) -> Path:
    """Prompts with short answers: of 64 tokens the second half is padding."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "answers.jsonl"
    records = (
        {"prompt": f"def f{n}(x): ", "completion": f"return {n}" * (1 + n % 3)} for n in range(100)
    )
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize("name", ROWS)
def test_a_task_gives_the_losses_of_one_rank(name: str, tmp_path: Path) -> None:
    found = []
    for alone in (True, False):
        recipe, given = _settings(name, tmp_path, alone=alone)
        found.append(run_dslm(tmp_path / str(alone), recipe, given))
    one, two = found
    assert len(losses(two)) == 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert _metrics(two) == pytest.approx(_metrics(one), rel=1e-4)
    # ranks that share experts read samples of their own: TRL's means of a step are means of theirs
    logged = [] if "expert" in name else zip(_logged(one), _logged(two), strict=True)
    for of_one, of_two in logged:
        # TRL's SFT has no layouts: dslm's own loss says no more of a step
        assert of_two == pytest.approx(of_one if of_two else {}, rel=1e-3, abs=1e-4)
        assert ("num_tokens" in of_two) is name.startswith(("dpo", "kto", "reward", "grpo"))
    assert _answers_of(two) == _answers_of(one)


# of a micro batch, or of the clock: two ranks have other ones
_OF_A_BATCH = {"min_reward", "max_reward", "step_time"}


def _logged(run: Path) -> list[dict[str, float]]:
    """What the trainer says of each step, but for what it doesn't know."""
    return [
        {k: v for k, v in step.metrics.items() if v is not None and k not in _OF_A_BATCH}
        for step in read_history(RunDirectory(run)).steps
    ]


def _answers_of(run: Path) -> list[tuple[int, str]]:
    return [(one.step, one.answer) for one in last_rollouts(RunDirectory(run), 10**6)]


def _metrics(run: Path) -> dict[str, float]:
    """What the last evaluation says."""
    last = read_history(RunDirectory(run)).last(Eval)
    found = {} if last is None else {"loss": last.loss, **last.metrics}
    return {name: value for name, value in found.items() if value is not None}
