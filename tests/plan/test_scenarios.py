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


@pytest.mark.parametrize("what", ["tensor", "sequence"])
def test_auto_proposes_no_layout_that_training_refuses(what: str) -> None:
    from dslm.plan.runnable import can_share
    from dslm.plan.search import choose

    loaded = load_recipe("llama-3.1-70b", [f"parallel.{what}=auto", "batch.global_size=64"])
    cluster = cluster_of(device_named("h100-80gb"), 64)
    plan = choose(loaded.recipe, cluster, resolve_job(loaded, cluster).profile)
    shared = {getattr(one.strategy, f"{what}_parallel") for one in (plan.choice, *plan.others)}
    assert (shared == {1}) is not can_share(what, loaded.recipe.task)  # type: ignore[arg-type]
