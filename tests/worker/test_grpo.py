"""GRPO trains for real: the reward rises, ranks don't show, and a killed run continues."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Answered, Eval
from dslm.run.history import read_history
from dslm.run.rollouts import last_rollouts
from dslm.run.samples import samples_of_steps
from tests.conftest import Dslm
from tests.worker.conftest import losses, run_dslm, run_killed

pytestmark = pytest.mark.slow

STEPS = 12
SHORT: dict[str, Any] = {
    "duration.steps": STEPS, "log.every": 1, "batch.global_size": 64, "rollout.group": 8,
    "evaluation.sample": "null", "log.samples": "true",
}  # fmt: skip


def _settings(ranks: int, stage: int, **more: Any) -> dict[str, Any]:
    micro = {"batch.micro_size": 64 if ranks == 1 else 16}
    return {**SHORT, **micro, "parallel.ranks": ranks, "parallel.zero_stage": stage, **more}


def test_the_reward_rises_and_answers_are_kept(tmp_path: Path, warm: Dslm) -> None:
    """On two ranks at stage 2; held-out sums are answered too."""
    twice = "[{function: number_match}, {function: number_match, weight: 0.0}]"  # named apart
    more = {
        "rewards": twice,
        "duration.steps": 40,
        "batch.global_size": 512,
        "rollout.group": 16,
        "data.eval": 0.1,
    }
    run = run_dslm(tmp_path, "quickstart-grpo", _settings(2, 2, **more))
    history = read_history(RunDirectory(run))
    rewards = [step.metrics["reward"] or 0.0 for step in history.steps]
    assert sum(rewards[-10:]) > 3 * sum(rewards[:10]) > 0
    answers = last_rollouts(RunDirectory(run), 8)
    assert {one.step for one in answers} == {40}
    assert len({one.prompt for one in answers}) == 1
    assert set(answers[0].rewards) == {"number_match", "number_match-2"}
    assert history.all(Answered)[-1].prompt.endswith("=")
    evaluation = history.all(Eval)[-1].metrics
    assert 0 <= (evaluation["reward"] or 0.0) <= 1
    assert evaluation["prompts"]
    said = warm("runs", "show", str(run)).stdout
    assert "reward" in said
    assert answers[-1].prompt in said


def test_a_killed_run_of_two_ranks_gives_the_losses_and_rewards_of_one(tmp_path: Path) -> None:
    """Answers are learnt from twice, so that it is killed within a round; a penalty compares."""
    more = {"rollout.rounds": 2, "rollout.max_tokens": 3, "training_args.beta": 0.04}
    alone = run_dslm(tmp_path / "alone", "quickstart-grpo", _settings(1, 3, **more))
    given = _settings(2, 3, **more, **{"checkpoint.every": 3})
    killed = run_killed(tmp_path / "killed", "quickstart-grpo", given, at=5)
    history = read_history(RunDirectory(killed))
    assert [step.loss for step in history.steps] == pytest.approx(losses(alone), abs=2e-4)
    whole = read_history(RunDirectory(alone)).steps
    rewards = [step.metrics.get("reward") for step in whole if step.metrics.get("reward")]
    found = [step.metrics.get("reward") for step in history.steps if step.metrics.get("reward")]
    assert found == pytest.approx(rewards, abs=1e-5)
    steps = samples_of_steps(RunDirectory(killed))
    seen = Counter(place for step in steps.values() for place in step)
    assert len(seen) == STEPS // 2 * 8
    assert set(seen.values()) == {2}
    assert list((killed / "checkpoints" / "step-9").glob("answers-*")), "it was within a round"


def test_a_reward_that_fails_ends_the_run_with_its_name(tmp_path: Path, warm: Dslm) -> None:
    (tmp_path / "rewards.py").write_text("def worth(completions, **more):\n    return [1 / 0]\n")
    recipe = "extends: quickstart-grpo\nrewards: [{function: rewards.py:worth}]\n"
    (tmp_path / "mine.yaml").write_text(recipe)
    done = warm("train", "mine.yaml", "-o", "run", "-s", "duration.steps=2")
    assert done.returncode == 1
    assert "the reward `worth`" in done.stderr
    assert "ZeroDivisionError" in done.stderr
