"""Learning from rewards: the draws, the rewards and their faults, the order of prompts."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dslm.errors import DslmError, InputError, RunFailed
from dslm.recipe.duration import total_steps
from dslm.recipe.load import load_recipe
from dslm.recipe.rewarding import Reward
from dslm.run.directory import RunDirectory
from dslm.run.rollouts import Rollout, append_rollouts, last_rollouts
from dslm.worker.data.order import Share
from dslm.worker.rl.draws import gumbel, keys_of
from dslm.worker.rl.prompts import GroupSampler, Prompts
from dslm.worker.rl.rewards import reward_function
from tests.worker.preparing import CHAT, prepared, recipe_of, write_lines


def test_a_draw_depends_on_seed_prompt_answer_and_position_alone() -> None:
    alone = gumbel(keys_of(1, [(7, 3)]), 5, 50)
    among = gumbel(keys_of(1, [(2, 0), (7, 3), (9, 1)]), 5, 50)
    assert torch.equal(alone[0], among[1])
    others = [keys_of(2, [(7, 3)]), keys_of(1, [(8, 3)]), keys_of(1, [(7, 4)])]
    assert not any(torch.equal(alone, gumbel(key, 5, 50)) for key in others)
    assert not torch.equal(alone, gumbel(keys_of(1, [(7, 3)]), 6, 50))


def test_draws_are_of_the_softmax_of_the_scores() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0]).double()
    keys = keys_of(0, [(place, copy) for place in range(500) for copy in range(40)])
    drawn = (scores + gumbel(keys, 1, 4)).argmax(1)
    share = torch.bincount(drawn, minlength=4) / len(keys)
    assert share.tolist() == pytest.approx(torch.softmax(scores, 0).tolist(), abs=0.012)


GIVEN: dict[str, Any] = {
    "prompts": ["2 + 2 ="] * 4,
    "completions": [" 4 ", "it is 4.", "so 1,004", [{"role": "assistant", "content": "4"}]],
    "completion_ids": [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]],
    "answer": ["4", "#### 4", 4, None],
}
BUILT_IN: list[tuple[dict[str, Any], list[float | None]]] = [
    ({"function": "exact_match"}, [1.0, 0.0, 0.0, None]),
    ({"function": "number_match"}, [1.0, 1.0, 0.0, None]),
    ({"function": "format", "pattern": r"^\s*\d\s*$"}, [1.0, 0.0, 0.0, 1.0]),
    ({"function": "length", "tokens": 2}, [1.0, 1.0, 0.5, 0.0]),
]


@pytest.mark.parametrize(("reward", "values"), BUILT_IN)
def test_a_built_in_reward_judges_every_answer(
    reward: dict[str, Any], values: list[float | None]
) -> None:
    assert reward_function(Reward(**reward))(**GIVEN) == values


FUNCTIONS = """
import re, time
from beside import worth

def correct(prompts, completions, answer, **more):
    return [worth(c) for c in completions]

def late(completions, **more):
    while True:
        try:
            time.sleep(5)
        except Exception:
            pass

def backtracks(completions, **more):
    return [re.match("(a+)+$", "a" * 60 + "b") for c in completions]

def raises(completions, **more):
    return [completions[0].no_such]

def few(completions, **more):
    return [1.0]

def endless(completions, **more):
    return [float("nan")] * len(completions)

value = 3
"""
FAULTS = [
    ("late", RunFailed, "`late` of .* took longer than 0.3 s for 4 answers"),
    ("backtracks", RunFailed, "`backtracks` of .* took longer"),
    ("raises", RunFailed, r"raised AttributeError: .* \(line 19\)"),
    ("few", RunFailed, "returned 1 numbers: it must return .* for each of 4 answers"),
    ("endless", RunFailed, "returned nan for an answer"),
    ("value", InputError, "has no function `value`"),
    ("gone", InputError, "has no function `gone`"),
]


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("def worth(answer):\n    return len(answer)\n")
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return tmp_path / "rewards.py"


def test_a_function_of_ones_own_is_called_as_trl_calls_it(rewards: Path) -> None:
    assert reward_function(Reward(function=f"{rewards}:correct"))(**GIVEN) == [3, 8, 8, 1]


@pytest.mark.parametrize(("name", "kind", "said"), FAULTS)
def test_what_goes_wrong_in_a_reward_is_said_to_be_its_own(
    name: str, kind: type[DslmError], said: str, rewards: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(kind) as failure:
        reward_function(Reward(function=f"{rewards}:{name}", timeout=0.3))(**GIVEN)
    assert time.monotonic() - began < 60
    assert re.search(said, failure.value.message)
    if kind is RunFailed:
        assert "rewards.py" in f"{failure.value.message} {failure.value.where}"


def _sampler(ranks: int, rank: int, *, rounds: int = 1, start: int = 0) -> GroupSampler:
    micro = 8 // ranks
    return GroupSampler(
        count=10, seed=3, steps=12, micro_batch=micro, accumulation=2, group=4, rounds=rounds,
        share=Share(rank=rank, world_size=ranks), start_step=start,
    )  # fmt: skip


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_prompt_is_answered_by_a_whole_group_once_an_epoch(rounds: int) -> None:
    for ranks in (1, 2, 4, 8):
        rows = [list(_sampler(ranks, rank, rounds=rounds)) for rank in range(ranks)]
        assert all(len(row) == 24 for row in rows)
        assert not any(batch for row in rows for batch in row[1::2])  # the Trainer keeps answers
        begun = zip(*(row[::2] for row in rows), strict=True)
        steps = [[answer for part in parts for answer in part] for parts in begun]
        assert all(step == steps[n // rounds * rounds] for n, step in enumerate(steps))
        given = [answer for step in steps[::rounds] for answer in step]
        groups = [given[i : i + 4] for i in range(0, len(given), 4)]
        assert all(group == [(group[0][0], copy) for copy in range(4)] for group in groups)
        places = [group[0][0] for group in groups]
        assert len(places) == 48 // rounds
        for epoch in range(len(places) // 10):
            assert sorted(p % 10 for p in places[epoch * 10 : epoch * 10 + 10]) == list(range(10))


def test_a_round_that_is_resumed_answers_the_same_prompts() -> None:
    whole, rest = _sampler(2, 1, rounds=3), _sampler(2, 1, rounds=3, start=4)
    assert next(iter(rest)) == list(whole)[3 * 2]  # at the beginning of the round of step 4


def test_steps_are_counted_by_prompts() -> None:
    given = ["batch.global_size=64", "rollout.group=16", "duration.epochs=2"]
    assert total_steps(load_recipe("quickstart-grpo", given).recipe, 100) == 50
    given.append("rollout.rounds=2")
    assert total_steps(load_recipe("quickstart-grpo", given).recipe, 100) == 100


@pytest.mark.usefixtures("cache")
def test_prompts_keep_what_rewards_are_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    chat = [{"role": "user", "content": "alpha"}]
    records = [
        {"prompt": "alpha beta", "answer": "gamma", "level": 3, "completions": "x"},
        {"messages": chat, "solution": "delta", "tests": ["a", "b"]},
        {"prompt": "alpha " * 90},
    ]
    file = write_lines(tmp_path / "prompts.jsonl", records)
    recipe = recipe_of("grpo", str(file), rollout__max_tokens=8)
    found = prepared(recipe, tokenizer)
    assert "leaves no room for an answer of 8" in found.statistics["examples"][0]
    first, second = (Prompts(found.train)[place] for place in range(2))
    assert (first["prompt"], first["answer"], first["level"]) == ("alpha beta", "gamma", 3)
    assert "completions" not in first
    assert (second["prompt"], second["answer"], second["tests"]) == (chat, "delta", ["a", "b"])
    assert tokenizer.decode(second["prompt_ids"]) == "<user>alpha\n<assistant>"


def test_the_record_of_answers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dslm.run.rollouts._MOST_BYTES", 2000)
    run = RunDirectory(tmp_path)
    for step in range(60):
        one = Rollout(
            attempt=1, step=step, prompt="a" * 50, answer="b", reference=None, reward=1.0,
            rewards={"x": 1.0}, advantage=0.0, tokens=1,
        )  # fmt: skip
        append_rollouts(run, [one])
    assert sum(file.stat().st_size for file in tmp_path.glob("rollouts*")) < 5000
    with run.rollouts.open("a") as stream:
        stream.write('{"attempt": 1, "st')
    assert [one.step for one in last_rollouts(run, 3)] == [57, 58, 59]
    assert json.loads(run.rollouts.read_text().splitlines()[0])["answer"] == "b"
    assert np.isfinite(last_rollouts(run, 2)[0].reward or 0)
