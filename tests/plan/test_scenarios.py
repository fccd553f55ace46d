"""What an expert would choose, case by case; the plan has to choose it too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dslm.cluster.devices import device_named
from dslm.decide.job import resolve_job
from dslm.plan.report import cluster_of
from dslm.recipe.load import load_recipe

EVERY = frozenset({0, 1, 2, 3})


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A model on devices, and the choices that are right."""

    model: str
    devices: int
    device: str
    settings: tuple[str, ...] = ()
    fits: bool = True
    stages: frozenset[int] = EVERY
    offload: tuple[str, ...] = ("none",)
    recomputes: bool | None = None
    most: int = 64  # the largest micro batch that is sensible
    least: int = 1


OFFLOAD = "parallel.offload=auto"
SCENARIOS = (
    # what needs no partitioning stays simple
    Scenario(model="smollm2-135m", devices=1, device="h100-80gb", stages=frozenset({0}), least=4),
    Scenario(model="llama-3.2-1b", devices=8, device="h100-80gb", stages=frozenset({0, 1, 2})),
    Scenario(model="llama-3.2-1b", devices=1, device="a100-80gb", stages=frozenset({0})),
    # the optimizer's state is what 8B on eight of 80 GB has to share
    Scenario(model="llama-3.1-8b", devices=8, device="h100-80gb", stages=frozenset({1, 2, 3})),
    Scenario(model="llama-3.1-8b", devices=8, device="a100-40gb", settings=(OFFLOAD,),
             stages=frozenset({2, 3})),
    Scenario(model="llama-3.1-8b", devices=64, device="a100-40gb", stages=frozenset({1, 2, 3})),
    # too small for all of it: partitioned, and offloaded only if that is asked for and needed
    Scenario(model="llama-3.1-8b", devices=1, device="rtx-4090", fits=False),
    Scenario(model="llama-3.1-8b", devices=1, device="h100-80gb", fits=False),
    Scenario(model="llama-3.1-8b", devices=1, device="h100-80gb", settings=(OFFLOAD,), least=2,
             offload=("optimizer", "all")),
    Scenario(model="llama-3.1-8b", devices=1, device="rtx-4090", settings=(OFFLOAD,),
             offload=("all",), stages=frozenset({3}), recomputes=True),
    # adapters
    Scenario(model="llama-3.1-8b", devices=1, device="rtx-4090", recomputes=True,
             settings=("lora={}", "data.sequence_length=1024")),
    Scenario(model="llama-3.2-3b", devices=1, device="v100-16gb", recomputes=True,
             settings=("lora={}", "data.sequence_length=2048", "precision=fp16")),
    Scenario(model="llama-3.1-70b", devices=8, device="a100-80gb", settings=("lora={}",),
             stages=frozenset({3})),
    # large models
    Scenario(model="llama-3.1-70b", devices=8, device="h100-80gb", fits=False),
    Scenario(model="llama-3.1-70b", devices=8, device="h100-80gb", settings=(OFFLOAD,),
             stages=frozenset({3}), offload=("optimizer", "all"), recomputes=True),
    Scenario(model="llama-3.1-70b", devices=64, device="h100-80gb", stages=frozenset({3}),
             recomputes=True),
    Scenario(model="llama-3.1-405b", devices=512, device="h100-80gb", stages=frozenset({3}),
             recomputes=True, settings=("batch.global_size=512",), most=2),
    Scenario(model="llama-3.1-405b", devices=64, device="h100-80gb", fits=False,
             settings=("batch.global_size=512",)),
    # a mixture keeps all its experts
    Scenario(model="mixtral-8x7b", devices=8, device="h100-80gb", fits=False),
    Scenario(model="mixtral-8x7b", devices=32, device="h100-80gb", stages=frozenset({3})),
    # long contexts: the activations are what doesn't fit
    Scenario(model="llama-3.1-8b", devices=8, device="h100-80gb", recomputes=True, most=1,
             settings=("data.sequence_length=16384", "batch.global_size=8")),
    # the logits of so many tokens alone take 84 GB
    Scenario(model="llama-3.1-8b", devices=8, device="h100-80gb", fits=False,
             settings=("data.sequence_length=65536", "batch.global_size=8")),
    Scenario(model="llama-3.1-8b", devices=8, device="a100-40gb", fits=False,
             settings=("data.sequence_length=131072", "batch.global_size=8")),
)  # fmt: skip


@pytest.mark.parametrize(
    "case", SCENARIOS, ids=lambda c: f"{c.model}-{c.devices}x{c.device}-{'-'.join(c.settings)}"
)
def test_the_plan_chooses_what_an_expert_would(case: Scenario) -> None:
    loaded = load_recipe(case.model, case.settings)
    job = resolve_job(loaded, cluster_of(device_named(case.device), case.devices))
    assert job.plan.fits is case.fits
    # what is chosen can be trained, and says how sure it is
    strategy, time = job.plan.strategy, job.plan.choice.time
    assert (strategy.tensor_parallel, strategy.sequence_parallel) == (1, 1)
    assert strategy.global_batch_size == loaded.recipe.batch.global_size
    assert time is not None
    assert 0 < time.error < 1
    if not case.fits:
        return
    assert strategy.zero_stage in case.stages
    assert strategy.offload in case.offload
    assert case.recomputes in (None, strategy.activation_checkpointing)
    assert case.least <= strategy.micro_batch_size <= case.most


# what of a model ranks may share, in steps of a run with as many samples
SHARED: tuple[tuple[str, tuple[str, ...], set[str]], ...] = (
    ("llama-3.1-70b", (), {"tensor", "sequence"}),
    ("llama-3.1-70b", ("optimizer.name=adafactor",), {"sequence"}),
    ("mixtral-8x7b", (), {"sequence", "expert"}),  # its plan has words that DeepSpeed lacks
    # 25 heads, which no number of ranks divides, and no plan of its own for tensor parallelism
    ("gpt2-1.5b", (), set()),
    ("gemma-3-4b", (), {"tensor", "sequence"}),
)
ALL = ("tensor", "sequence", "expert")


@pytest.mark.parametrize(("model", "settings", "expected"), SHARED)
def test_auto_proposes_what_training_runs_and_nothing_else(
    model: str, settings: tuple[str, ...], expected: set[str]
) -> None:
    from dslm.decide.checks import facts, layout
    from dslm.decide.checks.base import Case
    from dslm.decide.model import model_of

    autos = [f"parallel.{what}=auto" for what in ALL]
    loaded = load_recipe(model, [*settings, *autos, "batch.global_size=64"])
    cluster = cluster_of(device_named("h100-80gb"), 64)
    job = resolve_job(loaded, cluster)
    strategies = [one.strategy for one in (job.plan.choice, *job.plan.others)]
    shared = {w for w in ALL if any(getattr(s, f"{w}_parallel") > 1 for s in strategies)}
    assert shared == expected
    source = model_of(loaded)
    for strategy in strategies:
        case = Case(
            recipe=loaded.recipe, source=source, cluster=cluster, here=False, strategy=strategy,
            kind=facts.model_type(str(source.architecture["model_type"])),
        )  # fmt: skip
        assert not [found for check in layout.CHECKS for found in check.judge(case)]


def test_a_type_that_nobody_can_share_is_left_alone() -> None:
    import json

    architecture = {
        "model_type": "bloom", "hidden_size": 1024, "n_layer": 4, "n_head": 16, "vocab_size": 32000,
    }  # fmt: skip
    given = ["model.init=scratch", f"model.architecture={json.dumps(architecture)}"]
    autos = [f"parallel.{what}=auto" for what in ALL]
    loaded = load_recipe("llama-3.2-1b", [*given, *autos])
    job = resolve_job(loaded, cluster_of(device_named("h100-80gb"), 8))
    assert job.profile is not None
    strategies = [one.strategy for one in (job.plan.choice, *job.plan.others)]
    assert {(s.tensor_parallel, s.sequence_parallel, s.expert_parallel) for s in strategies} == {
        (1, 1, 1)
    }


def test_shared_experts_need_less_memory_and_send_more() -> None:
    memory, seconds = {}, {}
    for expert in (1, 8):
        loaded = load_recipe(
            "mixtral-8x7b",
            [f"parallel.expert={expert}", "parallel.zero_stage=1", "batch.global_size=64",
             "batch.micro_size=1", "model.activation_checkpointing=true"],
        )  # fmt: skip
        choice = resolve_job(loaded, cluster_of(device_named("h100-80gb"), 64)).plan.choice
        assert choice.memory is not None
        assert choice.time is not None
        memory[expert], seconds[expert] = choice.memory, choice.time.communication_seconds
    alone, shared = memory[1], memory[8]
    # 46.7B in bf16, of which each rank then has the rest and an eighth of 45.1B in experts
    saved = alone.parameters - shared.parameters
    assert saved == pytest.approx(2 * 45.1e9 * 7 / 8, rel=0.01)
    assert shared.optimizer == pytest.approx(alone.optimizer, rel=0.01)
    # fewer gradients and parameters between hosts count for more than the tokens inside one
    assert seconds[8] < seconds[1]
