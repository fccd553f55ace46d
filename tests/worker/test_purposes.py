"""Every purpose, alone and with adapters: two ranks learn what one learns, killed and moved too.

A chain each: one rank without ZeRO; then two ranks at stage 2, killed with -9, which go on at stage
3. Their curves and metrics are the same, the metric moves, no sample is lost or seen twice, and
`dslm evaluate` finds of the exported model what was found at the last step.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dslm.presets import purpose_names
from dslm.run.directory import RunDirectory
from dslm.run.events import Eval
from dslm.run.history import read_history
from dslm.run.samples import samples_of_steps
from dslm.worker.scores import scores
from tests.support.models import small_model
from tests.worker.conftest import losses, run_dslm, run_killed

pytestmark = pytest.mark.slow

STEPS, BATCH = 12, 8
COMMON: dict[str, Any] = {
    "duration.steps": STEPS, "batch.global_size": BATCH, "data.train": "stdlib", "data.eval": 0.1,
    "data.max_documents": 300, "data.sequence_length": 64, "precision": "fp32", "log.every": 1,
    "log.samples": "true", "evaluation.every": 4, "evaluation.max_samples": 21,
    "optimizer.lr": 2e-3, "schedule.name": "constant", "schedule.warmup": 0,
    "checkpoint.format": "portable",
}  # fmt: skip
ALONE = {
    "parallel.ranks": 1, "parallel.zero_stage": 0, "batch.micro_size": BATCH,
    "checkpoint.every": "null",
}  # fmt: skip
TOGETHER = {
    "parallel.ranks": 2, "parallel.zero_stage": 2, "batch.micro_size": 2, "checkpoint.every": 3,
}  # fmt: skip
FEW_BITS = importlib.util.find_spec("bitsandbytes") is not None


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What one chain trains, and the metric that moves: down where it is a loss, else up.

    `by_chance`: it may move either way, since it is of a reward model that learnt four steps.
    """

    purposes: str
    metric: str = "loss"
    by_chance: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    samples: int = BATCH  # of a step


ADAPTERS = {"lora.dropout": 0.0, "optimizer.lr": 1e-2}
GRPO = {
    "data.train": "arithmetic", "data.max_documents": "null", "rollout.group": 8,
    "rollout.max_tokens": 2, "batch.global_size": 64, "training_args.beta": 0.0,
    "rewards": "[{function: format, pattern: '^ ?[a-m]'}]", "optimizer.lr": 5e-3,
}  # fmt: skip
GRPO_ALONE, GRPO_TOGETHER = {"batch.micro_size": 64}, {"batch.micro_size": 16}
MARGINS, REWARD_MODEL = "rewards/margins", "A-MODEL-THAT-DSLM-TRAINED"
CHAINS = {
    "continue": Chain(purposes="continue"),
    "long-context": Chain(purposes="continue,long-context", settings={"data.sequence_length": 128}),
    "sft": Chain(purposes="sft"),
    "lora": Chain(
        purposes="sft,lora",
        settings={**ADAPTERS, "lora.dora": "true", "lora.modules_to_save": "[lm_head]"},
    ),
    "qlora": Chain(purposes="sft,qlora", settings=ADAPTERS),
    "dpo": Chain(purposes="dpo", metric=MARGINS),
    "orpo": Chain(purposes="orpo", metric=MARGINS),
    "kto": Chain(purposes="kto", metric=MARGINS, settings={"reference": "precomputed"}),
    "reward": Chain(purposes="reward", metric="margin"),
    "grpo": Chain(purposes="grpo", metric="reward", settings=GRPO, samples=8),
    "dpo beside 4 bits": Chain(purposes="dpo,qlora", metric=MARGINS, settings=ADAPTERS),
    "orpo with adapters": Chain(purposes="orpo,lora", metric=MARGINS, settings=ADAPTERS),
    "kto beside 4 bits": Chain(purposes="kto,qlora", metric=MARGINS, settings=ADAPTERS),
    "reward beside 4 bits": Chain(purposes="reward,qlora", metric="margin", settings=ADAPTERS),
    "grpo beside 4 bits": Chain(
        purposes="grpo,qlora",
        metric="reward",
        by_chance=True,
        samples=8,
        settings={**GRPO, **ADAPTERS, "rewards": f"[{{model: {REWARD_MODEL}}}]"},
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("purposes") / "base")


@pytest.fixture(scope="module")
def reward_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the purpose `reward` makes, by its folder."""
    given = {**COMMON, **ALONE, "duration.steps": 4, "evaluation.every": "null"}
    folder = tmp_path_factory.mktemp("reward")
    return run_dslm(folder, f"--model {base} --with reward", given) / "model"


def _evaluations(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of each evaluation, by its step."""
    found = read_history(RunDirectory(run)).all(Eval)
    return {
        each.step: {n: v for n, v in {**each.metrics, "loss": each.loss}.items() if v is not None}
        for each in found
    }


def test_every_purpose_has_a_chain() -> None:
    trained = {name for chain in CHAINS.values() for name in chain.purposes.split(",")}
    assert trained == set(purpose_names())


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_two_ranks_learns_what_one_rank_learns(
    name: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chain = CHAINS[name]
    if "qlora" in chain.purposes and not FEW_BITS:
        pytest.skip("needs bitsandbytes")
    recipe = f"--model {base} --with {chain.purposes}"
    alone_at, together_at = ALONE, TOGETHER
    if chain.settings.get("rollout.group"):
        alone_at, together_at = {**ALONE, **GRPO_ALONE}, {**TOGETHER, **GRPO_TOGETHER}
    given = {**COMMON, **chain.settings}
    if REWARD_MODEL in str(given.get("rewards")):
        folder = str(request.getfixturevalue("reward_model"))
        given["rewards"] = given["rewards"].replace(REWARD_MODEL, folder)
    alone = run_dslm(tmp_path / "alone", recipe, {**given, **alone_at})
    together = run_killed(
        tmp_path / "together", recipe, {**given, **together_at}, at=5,
        then={"parallel.zero_stage": 3},
    )  # fmt: skip
    steps = read_history(RunDirectory(together)).steps
    assert [step.loss for step in steps] == pytest.approx(losses(alone), abs=2e-4)
    seen = [place for step in samples_of_steps(RunDirectory(together)).values() for place in step]
    assert len(seen) == len(set(seen)) == STEPS * chain.samples
    wanted, found = _evaluations(alone), _evaluations(together)
    assert found == {step: pytest.approx(values, abs=1e-3) for step, values in wanted.items()}
    before, after = wanted[4][chain.metric], wanted[STEPS][chain.metric]
    if chain.by_chance:
        assert after != before
    else:
        assert after < before if chain.metric == "loss" else after > before
    card = (together / "model" / "README.md").read_text()
    assert f"evaluation {chain.metric}: " in card
    asked = {
        "model": str(together / "model"), "run": str(together), "own": True, "against": None,
        "trusted": False, "tasks": [],
    }  # fmt: skip
    again = scores(asked, lambda detail: None)["scores"][0]["held out"]
    # the adapters that were exported are for the model as it is, not in few bits
    within = 0.1 if "qlora" in chain.purposes else 1e-3
    assert again == pytest.approx(found[STEPS], rel=within, abs=within)


@pytest.mark.parametrize("purposes", ["sft", "sft,lora", "dpo", "kto"])
def test_a_head_of_its_own_learns_at_stage_3_from_the_first_step(
    purposes: str, base: Path, tmp_path: Path
) -> None:
    """TRL takes its weights beside its module, which ZeRO-3 has to know from the start."""
    given = {**COMMON, "duration.steps": 3, "checkpoint.every": "null", "evaluation.every": "null"}
    if "lora" in purposes:
        given |= {**ADAPTERS, "lora.modules_to_save": "[lm_head]"}
    recipe = f"--model {base} --with {purposes}"
    alone = run_dslm(tmp_path / "alone", recipe, {**given, **ALONE})
    shared = {**given, "parallel.ranks": 2, "parallel.zero_stage": 3, "batch.micro_size": 2}
    together = run_dslm(tmp_path / "together", recipe, shared)
    assert losses(together) == pytest.approx(losses(alone), abs=2e-4)
