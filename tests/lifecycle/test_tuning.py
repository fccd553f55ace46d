"""`dslm tune`: real trials, a recipe with what won, and no trial made twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dslm.errors import OptionError
from dslm.lifecycle import trial as one_trial
from dslm.lifecycle import tuning, values
from dslm.lifecycle.fleet import fleet_of
from dslm.lifecycle.placement import Placement
from dslm.lifecycle.request import TrainingRequest
from dslm.plan.search import Candidate
from dslm.plan.tuning import KEYS, Trial, best, hopeless
from dslm.recipe.load import LoadedRecipe, load_recipe
from dslm.run.events import Step, stamp
from tests.conftest import Dslm

SETTINGS = ("data.max_documents=200", "optimizer.lr=1.0e-3")


def asked(folder: Path, settings: tuple[str, ...] = SETTINGS) -> one_trial.Tuning:
    loaded = load_recipe("quickstart", settings)
    request = TrainingRequest(recipe=loaded, fleet=fleet_of(Placement(num_gpus=1)))
    return one_trial.Tuning(
        recipe="quickstart", settings=settings, request=request, folder=folder, trials=4
    )


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Trials that take what their stage says instead of training."""
    found: list[Candidate] = []

    def trial(asked: object, one: Candidate, trials: Sequence[Trial], tell: object) -> Trial:
        found.append(one)
        values = {name: getattr(one.strategy, name) for name in KEYS}
        return Trial(number=len(trials) + 1, seconds=1.0 + one.strategy.zero_stage, **values)

    monkeypatch.setattr(tuning, "_tried", trial)
    return found


def test_the_winner_is_a_recipe_that_extends_the_one_that_was_tuned(
    tmp_path: Path, tried: list[Candidate]
) -> None:
    trials = tuning.tune(asked(tmp_path), lambda trials, trying: None, lambda detail: None)
    winner = best(trials)
    assert winner is not None
    assert len(tried) == len(trials) <= 4
    tuned = load_recipe(str(tmp_path / one_trial.TUNED)).recipe
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
        lambda asked, one, trials, tell: Trial(
            number=len(trials) + 1, why="no room", out_of_memory=True,
            **{name: getattr(one.strategy, name) for name in KEYS},
        ),
    )  # fmt: skip
    with pytest.raises(OptionError, match="no room"):
        tuning.tune(asked(tmp_path), lambda *_: None, lambda detail: None)


def test_a_trial_that_cannot_win_is_given_up() -> None:
    known = [_trial(1, 0.10), _trial(2, 0.20)]
    assert not hopeless([0.5, 0.5], known)  # too few to say
    assert not hopeless([0.5, 0.5, 0.12], known)  # one was as quick: others were disturbed
    assert hopeless([0.5, 0.2, 0.3], known)
    assert not hopeless([0.5, 0.5, 0.5], [])


def _trial(number: int, seconds: float) -> Trial:
    return Trial(
        number=number, seconds=seconds, zero_stage=number, offload="none", micro_batch_size=1,
        activation_checkpointing=False,
    )  # fmt: skip


def searched(folder: Path, trials: int) -> one_trial.Tuning:
    return replace(asked(folder), trials=trials, steps=12)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trials whose loss is the distance of the learning rate from 3e-3."""
    rates: list[float] = []

    def run(
        request: object, loaded: LoadedRecipe, folder: Path, *, steps: int,
        give_up: one_trial.GiveUp, tell: object,
    ) -> one_trial.Tried:  # fmt: skip
        rate = loaded.recipe.optimizer.lr
        rates.append(rate)
        made: list[Step] = []
        for step in range(1, steps + 1):
            loss = 5.0 - 0.1 * step + 100 * abs(rate - 3e-3)
            made.append(Step(**stamp(1), step=step, loss=loss))
            if give_up(made):
                return one_trial.Tried(steps=tuple(made), gave_up=True)
        return one_trial.Tried(steps=tuple(made))

    monkeypatch.setattr(values, "run_trial", run)
    return rates


def test_the_values_with_the_lowest_loss_make_a_recipe(
    tmp_path: Path, trained: list[float]
) -> None:
    over = values.parse_over(["optimizer.lr=1e-4,3e-3,5e-2", "optimizer.weight_decay=0, 0.1"])
    assert over == {"optimizer.lr": (1e-4, 3e-3, 5e-2), "optimizer.weight_decay": (0, 0.1)}
    tuned_by = searched(tmp_path, 6)
    found = values.search(tuned_by, over, lambda *_: None, lambda detail: None)
    assert len(found) == 6
    assert any(trial.given_up and len(trial.losses) < 12 for trial in found)
    tuned = load_recipe(str(tmp_path / one_trial.TUNED)).recipe
    assert tuned.optimizer.lr == 3e-3
    assert tuned.data.max_documents == 200
    # nothing is trained twice
    assert values.search(tuned_by, over, lambda *_: None, lambda detail: None) == found
    assert len(trained) == 6
    with pytest.raises(OptionError, match="another recipe"):
        values.search(replace(tuned_by, steps=20), over, lambda *_: None, lambda detail: None)


def test_of_many_values_optuna_chooses_and_none_is_tried_twice(
    tmp_path: Path, trained: list[float]
) -> None:
    pytest.importorskip("optuna", reason="pip install 'dslm[tune]'")
    rates = tuple(n * 1e-3 for n in range(1, 41))
    over = {"optimizer.lr": rates}
    half = values.search(searched(tmp_path, 5), over, lambda *_: None, lambda detail: None)
    found = values.search(searched(tmp_path, 12), over, lambda *_: None, lambda detail: None)
    assert found[:5] == half
    assert len(set(trained)) == len(trained) == 12
    winner = values.best_values(found)
    assert winner is not None
    assert abs(winner.values["optimizer.lr"] - 3e-3) < 8e-3  # type: ignore[operator]


def test_without_optuna_more_values_than_trials_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dslm.lifecycle.values.find_spec", lambda name: None)
    over = {"optimizer.lr": (1e-3, 2e-3, 3e-3)}
    with pytest.raises(OptionError, match="Optuna") as refused:
        values.search(searched(tmp_path, 2), over, lambda *_: None, lambda detail: None)
    assert "dslm[tune]" in refused.value.hint


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("optimizer.lr", "two values"), ("optimizer.lr=1e-3", "two values"), ("=1,2", "two values"),
        ("optimizer.lr=1e-3,1e-3", "two values"), ("optimizer.rate=1,2", "rate"),
        ("optimizer.lr=1e-3,-1", "optimizer.lr"), ("optimizer.lr=[1,2", "two values"),
    ],
)  # fmt: skip
def test_values_that_no_recipe_can_have_are_refused(dslm: Dslm, over: str, said: str) -> None:
    done = dslm("tune", "quickstart", "--over", over)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.slow
def test_trials_train_for_real_and_leave_no_model(warm: Dslm, tmp_path: Path) -> None:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = warm(
        "tune", "quickstart", *settings, "--num-gpus", "1", "--trials", "2", "--steps", "3",
        "-o", "tuning", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(trial["seconds"] > 0 and trial["memory_bytes"] > 0 for trial in found["trials"])
    assert not list(tmp_path.glob("tuning/trial-*/model"))
    assert not list(tmp_path.glob("tuning/trial-*/checkpoints/step-*"))
    assert warm("plan", found["recipe"]).returncode == 0


@pytest.mark.slow
def test_values_are_trained_for_real(warm: Dslm, tmp_path: Path) -> None:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = warm(
        "tune", "quickstart", *settings, "--num-gpus", "1", "--over", "optimizer.lr=1e-6,3e-3",
        "--steps", "12", "-o", "tuning", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [len(trial["losses"]) for trial in found["trials"]] == [12, 12]
    assert found["best"]["values"] == {"optimizer.lr": 3e-3}
