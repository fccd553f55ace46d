"""Every feature of DeepSpeed is set, explained and planned; DeepSpeed accepts what is set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.job import Job
from dslm.decide.ready import ready_job
from dslm.recipe.catalog import put_on
from dslm.recipe.features import FEATURES
from dslm.recipe.load import load_recipe
from dslm.zero.config import value_at
from dslm.zero.lint import lint
from tests.zero.test_generate import _deepspeed_config

STAGE_3 = "parallel.zero_stage=3"
HOST = "parallel.offload=optimizer"
Z = "zero_optimization"
# a feature's key: what else it needs, its value, and what is set in the config
ON: dict[str, tuple[tuple[str, ...], str, dict[str, object]]] = {
    "parallel.hpz": ((STAGE_3,), "true", {f"{Z}.zero_hpz_partition_size": 8}),
    "parallel.quantized_weights": ((STAGE_3,), "true", {f"{Z}.zero_quantized_weights": True}),
    "parallel.quantized_gradients": ((STAGE_3,), "true", {f"{Z}.zero_quantized_gradients": True}),
    "parallel.offload_ratio": ((STAGE_3, HOST), "0.4", {f"{Z}.offload_optimizer.ratio": 0.4}),
    "parallel.super_offload": (
        (STAGE_3, HOST), "true", {f"{Z}.offload_optimizer.super_offload": True},
    ),
    "parallel.zenflow": (
        (HOST, "batch.global_size=16", "batch.micro_size=1"), "true",
        {f"{Z}.zenflow.topk_ratio": 0.1},
    ),
    "parallel.overlap": (("parallel.zero_stage=1",), "true", {f"{Z}.overlap_comm": True}),
    "model.deepcompile": ((), "true", {"compile.deepcompile": True}),
    "model.chunked_loss": ((), "true", {}),
    "model.tiled_mlp": ((), "true", {}),
    "model.tiled_loss": ((), "true", {}),
    "model.offload_activations": (("model.activation_checkpointing=true",), "true", {}),
    "autocast": (
        (), "true",
        {"torch_autocast.enabled": True, "torch_autocast.dtype": "bfloat16", "bf16": None},
    ),
}  # fmt: skip


def _job(*overrides: str, hosts: int = 2, network: float | None = None) -> Job:
    device = device_named("h100-80gb")
    device = replace(device, network_bandwidth=network or device.network_bandwidth)
    cluster = Cluster(hosts=tuple(Host(f"w{n}", 8) for n in range(hosts)), device=device)
    given = [*overrides, "data.train=stdlib"]
    return ready_job(
        load_recipe("llama-3.2-1b", given), cluster, Asking(verb=Verb.PLAN, here=False)
    )


def test_every_feature_is_in_the_table() -> None:
    assert {feature.key for feature in FEATURES} == set(ON)


@pytest.mark.parametrize("key", ON)
def test_a_feature_is_set_with_its_reason_and_accepted(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs, value, wanted = ON[key]
    feature = next(each for each in FEATURES if each.key == key)
    job = _job(*needs, f"{key}={value}")
    assert job.plan.strategy.zero_stage in feature.stages
    for path, expected in wanted.items():
        assert value_at(job.config.values, path) == expected
        if expected is not None:
            assert job.config.reasons[path].text
    assert not [found for found in lint(job.config.values) if found.severity == "error"]
    _deepspeed_config(job.config.values, 16, monkeypatch)


@pytest.mark.parametrize(
    ("hosts", "network", "chosen"), [(2, 1e8, True), (2, None, False), (1, None, False)]
)
def test_a_second_partition_is_chosen_where_links_between_hosts_are_slow(
    hosts: int, network: float | None, chosen: bool
) -> None:
    job = _job(STAGE_3, "parallel.hpz=auto", hosts=hosts, network=network)
    assert job.plan.strategy.second_partition is job.recipe.parallel.hpz is chosen
    size = value_at(job.config.values, f"{Z}.zero_hpz_partition_size")
    assert (size == 8) is chosen
    # what was chosen costs what it costs where it is said
    said = _job(STAGE_3, f"parallel.hpz={str(chosen).lower()}", hosts=hosts, network=network)
    assert job.plan.choice.memory == said.plan.choice.memory
    assert job.plan.choice.time == said.plan.choice.time


def test_all_of_zeropp_is_its_three_keys() -> None:
    three = [
        f"parallel.{name}=true" for name in ("hpz", "quantized_weights", "quantized_gradients")
    ]
    alone, apart = _job(STAGE_3, "parallel.zeropp=true"), _job(STAGE_3, *three)
    assert alone.config.values == apart.config.values
    assert alone.config.preset == "zeropp"
    assert alone.plan.choice.time == apart.plan.choice.time


def _memory(*overrides: str, hosts: int = 2) -> dict[str, int]:
    memory = _job("batch.micro_size=1", *overrides, hosts=hosts).plan.choice.memory
    assert memory is not None
    names = ("parameters", "optimizer", "buffers", "logits")
    return {name: getattr(memory, name) for name in names} | {"host": memory.host_states}


def test_a_second_partition_and_what_twin_flow_keeps_are_planned() -> None:
    plain, second = _memory(STAGE_3), _memory(STAGE_3, "parallel.hpz=true")
    assert second["parameters"] == pytest.approx(3 * plain["parameters"], rel=0.01)  # 1/16 + 1/8
    whole, part = _memory(STAGE_3, HOST), _memory(STAGE_3, HOST, "parallel.offload_ratio=0.4")
    moved = whole["host"] - part["host"]
    assert whole["optimizer"] == 0
    assert part["optimizer"] == pytest.approx(moved, rel=0.01)
    # of 16 bytes a parameter (copy, moments, gradient) three fifths
    assert part["optimizer"] == pytest.approx(0.6 * 16 * 1.236e9 / 16, rel=0.02)


def test_what_superoffload_keeps_beside_an_offload_is_planned() -> None:
    """On the host a second process with its gradients; on the first device a context of each."""
    whole, apart = (
        job.plan.choice.memory
        for setting in ("false", "true")
        if (job := _job(STAGE_3, HOST, f"parallel.super_offload={setting}", hosts=1))
    )
    assert whole is not None
    assert apart is not None
    group = 4 * 1.236e9 / 8  # one, in fp32: there, and as it moves into shared memory
    assert apart.host_states - whole.host_states == pytest.approx(2 * group + 2**31, rel=0.01)
    assert apart.total - whole.total == apart.context - whole.context == 8 * 2**29
    moments = [t.bytes for t in apart.terms if t.name == "moments of the process that updates"]
    assert moments == [pytest.approx(2 * group, rel=0.01)]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ((STAGE_3,), True), (("parallel.zero_stage=2",), False),
        ((STAGE_3, f"deepspeed.{Z}.memory_efficient_linear=false"), False),
        ((STAGE_3, "quantize=nf4"), False),
    ],
)  # fmt: skip
def test_inputs_of_frozen_weights_are_a_term_where_deepspeed_keeps_them(
    changes: tuple[str, ...], kept: bool
) -> None:
    loaded = load_recipe("llama-3.1-8b-instruct", [*put_on(("lora",)), *changes, "data.train=x"])
    cluster = Cluster(hosts=(Host("w1", 8),), device=device_named("h100-80gb"))
    memory = ready_job(loaded, cluster, Asking(verb=Verb.PLAN, here=False)).plan.choice.memory
    assert memory is not None
    assert any(term.name == "inputs of frozen weights" for term in memory.terms) is kept


def test_a_quarter_of_the_gradients_and_half_the_parameters_are_sent() -> None:
    seconds = {
        setting: time.communication_seconds
        for setting in (
            "overlap=auto",
            "quantized_weights=true",
            "quantized_gradients=true",
            "hpz=true",
        )
        if (time := _job(STAGE_3, "batch.micro_size=1", f"parallel.{setting}").plan.choice.time)
    }
    plain = seconds.pop("overlap=auto")
    assert len(seconds) == 3
    assert all(each < plain for each in seconds.values())


def test_what_is_not_overlapped_waits_and_needs_one_bucket() -> None:
    beside, after = (
        _job("parallel.zero_stage=2"),
        _job("parallel.zero_stage=2", "parallel.overlap=false"),
    )
    assert after.plan.choice.time is not None
    assert beside.plan.choice.time is not None
    assert after.plan.choice.time.exposed_seconds > beside.plan.choice.time.exposed_seconds
    assert (
        _memory("parallel.zero_stage=2", "parallel.overlap=false")["buffers"]
        < (_memory("parallel.zero_stage=2")["buffers"])
    )


def test_autocast_keeps_parameters_in_fp32() -> None:
    half, whole = (
        _memory("parallel.zero_stage=2"),
        _memory("parallel.zero_stage=2", "autocast=true"),
    )
    assert whole["parameters"] == 2 * half["parameters"]
