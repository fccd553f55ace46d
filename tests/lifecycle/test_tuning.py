"""`dslm tune`: real trials, a recipe with what won, and no trial made twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dslm.errors import OptionError
from dslm.lifecycle import tuning
from dslm.lifecycle.fleet import fleet_of
from dslm.lifecycle.placement import Placement
from dslm.lifecycle.request import TrainingRequest
from dslm.plan.search import Candidate
from dslm.plan.tuning import KEYS, Trial, best
from dslm.recipe.load import load_recipe
from tests.conftest import Dslm

SETTINGS = ("data.max_documents=200", "optimizer.lr=1.0e-3")


def asked(folder: Path, settings: tuple[str, ...] = SETTINGS) -> tuning.Tuning:
    loaded = load_recipe("quickstart", settings)
    request = TrainingRequest(recipe=loaded, fleet=fleet_of(Placement(num_gpus=1)))
    return tuning.Tuning(
        recipe="quickstart", settings=settings, request=request, folder=folder, trials=4
    )


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Trials that take what their stage says instead of training."""
    found: list[Candidate] = []

    def trial(asked: object, job: object, one: Candidate, number: int, tell: object) -> Trial:
        found.append(one)
        values = {name: getattr(one.strategy, name) for name in KEYS}
        return Trial(number=number, seconds=1.0 + one.strategy.zero_stage, **values)

    monkeypatch.setattr(tuning, "_tried", trial)
    return found


def test_the_winner_is_a_recipe_that_extends_the_one_that_was_tuned(
    tmp_path: Path, tried: list[Candidate]
) -> None:
    trials = tuning.tune(asked(tmp_path), lambda trials, trying: None, lambda detail: None)
    winner = best(trials)
    assert winner is not None
    assert len(tried) == len(trials) <= 4
    tuned = load_recipe(str(tmp_path / tuning.TUNED)).recipe
    assert tuned.parallel.zero_stage == winner.zero_stage
    assert tuned.batch.micro_size == winner.micro_batch_size
    assert tuned.optimizer.lr == 1e-3
    assert tuned.data.max_documents == 200
    assert tuned.batch.global_size == load_recipe("quickstart").recipe.batch.global_size


def test_the_same_command_continues_and_another_recipe_is_refused(
    tmp_path: Path, tried: list[Candidate]
) -> None:
    first = tuning.tune(replace(asked(tmp_path), trials=2), lambda *_: None, lambda detail: None)
    with (tmp_path / "trials.jsonl").open("a") as stream:
        stream.write('{"number": 3, "zero_st')  # ended in the middle of a line
    again = tuning.tune(asked(tmp_path), lambda *_: None, lambda detail: None)
    assert again[:2] == first
    assert len(tried) == len(again)
    assert tuning.tune(asked(tmp_path), lambda *_: None, lambda detail: None) == again
    with pytest.raises(OptionError, match="another recipe"):
        other = asked(tmp_path, (*SETTINGS, "data.sequence_length=64"))
        tuning.tune(other, lambda *_: None, lambda detail: None)


def test_where_nothing_can_be_measured_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tuning, "_tried",
        lambda asked, job, one, number, tell: Trial(
            number=number, why="no room", out_of_memory=True,
            **{name: getattr(one.strategy, name) for name in KEYS},
        ),
    )  # fmt: skip
    with pytest.raises(OptionError, match="no room"):
        tuning.tune(asked(tmp_path), lambda *_: None, lambda detail: None)


@pytest.mark.slow
def test_trials_train_for_real_and_leave_no_model(dslm: Dslm, tmp_path: Path) -> None:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = dslm(
        "tune", "quickstart", *settings, "--num-gpus", "1", "--trials", "2", "--steps", "3",
        "-o", "tuning", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(trial["seconds"] > 0 and trial["memory_bytes"] > 0 for trial in found["trials"])
    assert not list(tmp_path.glob("tuning/trial-*/model"))
    assert not list(tmp_path.glob("tuning/trial-*/checkpoints/step-*"))
    assert dslm("plan", found["recipe"]).returncode == 0
