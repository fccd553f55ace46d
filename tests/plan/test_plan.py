"""The planner's choices obey what everybody expects of memory, and say what they can't know."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslm.ask.profile import profile_request
from dslm.cluster.devices import DEVICES, device_named
from dslm.plan.buckets import bucket_elements
from dslm.plan.memory import Memory, estimate
from dslm.plan.report import cluster_of
from dslm.plan.search import choose
from dslm.plan.strategy import Strategy
from dslm.plan.time import EXPOSED, predict
from dslm.profile.store import stored
from dslm.recipe.load import load_recipe
from tests.conftest import Dslm

RECIPE = load_recipe("llama-3.2-1b").recipe
_REQUEST = profile_request(RECIPE, dict(RECIPE.model.architecture), on_cpu=False)
_STORED = stored(_REQUEST)
assert _STORED is not None, "the preset's profile ships with dslm: `make profiles`"
PROFILE = _STORED
BASE = Strategy(
    zero_stage=0, offload="none", micro_batch_size=1, gradient_accumulation_steps=1,
    activation_checkpointing=False, tensor_parallel=1, sequence_parallel=1, data_parallel_size=8,
)  # fmt: skip


def _memory(strategy: Strategy, length: int = 2048) -> Memory:
    data = RECIPE.data.model_copy(update={"sequence_length": length})
    return estimate(
        RECIPE.model_copy(update={"data": data}), PROFILE, strategy,
        device_kind="cuda", ranks_per_host=8, buckets=bucket_elements(PROFILE),
    )  # fmt: skip


@given(
    stage=st.sampled_from([0, 1, 2, 3]), ranks=st.integers(1, 512), micro=st.integers(1, 16),
    length=st.sampled_from([256, 1024, 4096]), recompute=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_memory_moves_the_way_it_must(
    stage: int, ranks: int, micro: int, length: int, recompute: bool
) -> None:
    here = replace(
        BASE, zero_stage=stage, data_parallel_size=ranks, micro_batch_size=micro,
        activation_checkpointing=recompute,
    )  # fmt: skip
    total = _memory(here, length).total
    assert _memory(replace(here, data_parallel_size=ranks * 2), length).total <= total
    assert _memory(replace(here, micro_batch_size=micro + 1), length).total >= total
    assert _memory(here, length * 2).total >= total
    forward = _memory(here, length).phases["forward"]
    assert _memory(here, length * 2).phases["forward"] > forward
    assert _memory(replace(here, activation_checkpointing=True), length).total <= total
    states = _memory(here, length)
    if stage < 3:
        above = _memory(replace(here, zero_stage=stage + 1), length)
        kept = above.parameters + above.gradients + above.optimizer
        assert kept <= states.parameters + states.gradients + states.optimizer


def test_more_memory_never_makes_a_plan_that_fits_not_fit() -> None:
    cluster = cluster_of(device_named("l4"), 4)
    fits = [
        choose(
            RECIPE,
            replace(cluster, device=replace(cluster.device, memory_bytes=gib * 2**30)),
            PROFILE,
        ).fits
        for gib in (2, 4, 8, 16, 32, 64, 128)
    ]
    assert fits == sorted(fits)
    assert fits[0] is False
    assert fits[-1] is True


def test_what_is_offloaded_comes_over_the_bus_in_every_micro_batch() -> None:
    cluster = cluster_of(device_named("rtx-4090"), 2)
    seconds = {}
    for offload, accumulation in (("optimizer", 8), ("all", 8), ("nvme", 8), ("all", 16)):
        strategy = replace(
            BASE, zero_stage=3, offload=offload, data_parallel_size=2,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        found = predict(RECIPE, PROFILE, strategy, cluster)
        assert found is not None
        seconds[offload, accumulation] = found.step_seconds
    # 2.5 GB shared by two ranks, twice, at 25 GB/s: 0.1 s a micro batch, a part of it hidden
    micro = EXPOSED * 2 * PROFILE.total * 2 / 2 / 25e9
    assert seconds["all", 8] - seconds["optimizer", 8] == pytest.approx(8 * micro, rel=0.01)
    assert seconds["all", 16] > 2 * seconds["all", 8] - seconds["optimizer", 8]
    assert seconds["nvme", 8] > seconds["all", 8]


def test_every_device_has_a_source_and_plausible_numbers() -> None:
    for device in DEVICES.values():
        assert device.source
        assert 1e13 < device.peak_flops["fp16"] < 1e16
        assert 1e11 < device.memory_bandwidth < 2e13


def test_the_document_has_what_other_programs_rely_on(warm: Dslm) -> None:
    done = warm("plan", "llama-3.1-8b", "--gpus", "16", "--device", "h100-80gb", "--json")
    plan = json.loads(done.stdout)
    assert plan["model"]["parameters"] == 8030261248
    for key in (
        "zero_stage", "offload", "micro_batch_size", "gradient_accumulation_steps",
        "activation_checkpointing", "tensor_parallel", "sequence_parallel",
    ):  # fmt: skip
        assert key in plan["choice"]
    for key in (
        "parameters", "gradients", "optimizer", "activations", "logits", "buffers", "context",
        "total",
    ):  # fmt: skip
        assert isinstance(plan["memory"]["device"][key], int)
    phases = plan["memory"]["device"]["phases"]
    assert {"init", "forward", "backward", "step", "checkpoint", "export"} <= set(phases)
    assert plan["memory"]["device"]["peak_phase"] in phases
    assert plan["memory"]["device"]["total"] == max(phases.values())
    assert isinstance(plan["memory"]["host"]["total"], int)
    assert plan["memory"]["capacity"] == 80 * 2**30
    assert plan["fits"] is True
    for key in ("step_seconds", "tokens_per_second", "mfu", "bound_by"):
        assert plan["time"][key]


TINY = {
    "model_type": "stablelm", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 1000,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 512,
}  # fmt: skip


def test_a_model_folder_or_config_can_be_planned(warm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    for name in (".", "config.json"):
        plan = json.loads(warm("plan", name, "--gpus", "1", "--device", "l4", "--json").stdout)
        assert plan["model"]["exact"] is True
        # two matrices of embeddings; four square ones, three of the MLP and two norms a layer
        layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 2 * 64
        assert plan["model"]["parameters"] == 2 * 1000 * 64 + 2 * layer + 2 * 64
        assert plan["fits"] is True


def test_a_model_that_cannot_be_traced_never_fits(warm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "model_type": "newfangled"}))
    argv = ["plan", "config.json", "--gpus", "1", "--device", "l4"]
    found = json.loads(warm(*argv, "--json").stdout)
    assert found["fits"] is None
    assert "newfangled" in found["model"]["untraced"]
    assert found["memory"]["device"] is None
    done = warm(*argv)
    assert done.returncode == 0
    assert "has no model type `newfangled`" in done.stdout
    verdicts = re.findall(r"fits\s+(\w+)", done.stdout)
    assert verdicts == ["unknown"]


def test_every_term_of_a_plan_is_explained(warm: Dslm) -> None:
    argv = [
        "plan", "llama-3.1-8b", "--gpus", "16", "--device", "h100-80gb",
        "-s", "parallel.zero_stage=3",
    ]  # fmt: skip
    found = json.loads(warm(*argv, "--json").stdout)["memory"]
    moment = found["peak_moment"]
    terms = [t for t in found["terms"] if t["place"] == "device"]
    assert all(t["source"] and t["lives"] for t in terms)
    alive = sum(t["bytes"] for t in terms if moment in t["lives"])
    assert alive == found["device"]["total"]
    done = warm(*argv, "--explain")
    for words in ("gathered parameters", "partitioned_param_coordinator", "traced", moment):
        assert words in done.stdout


def test_sizes_are_understood_as_people_write_them(warm: Dslm) -> None:
    for text, parameters in (("7.5B", 7_500_000_000), ("128b", 128 * 10**9), ("1e12", 10**12)):
        found = json.loads(warm("plan", "--params", text, "--zero", "3", "--json").stdout)
        assert found["model"]["parameters"] == parameters


def test_a_sweep_compares_stages_and_cluster_sizes(warm: Dslm) -> None:
    done = warm("plan", "llama-3.1-8b", "--device", "a100-80gb", "--sweep", "--json")
    rows = json.loads(done.stdout)
    assert {row["zero_stage"] for row in rows} == {0, 1, 2, 3}
    assert {row["gpus"] for row in rows} >= {1, 8, 64}
    assert not next(r for r in rows if r["gpus"] == 1 and r["zero_stage"] == 0)["fits"]
    assert next(r for r in rows if r["gpus"] == 64 and r["zero_stage"] == 3)["fits"]


def test_a_hostfile_says_how_many_devices_there_are(warm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("alpha slots=4\nbeta slots=4\n")
    argv = ["plan", "llama-3.2-1b", "-H", "hosts", "--device", "l40s", "--json"]
    found = json.loads(warm(*argv).stdout)
    found["cluster"].pop("peak_flops")
    assert found["cluster"] == {"device": "l40s", "hosts": 2, "world_size": 8}


def test_the_screen_shows_bars_the_peak_and_why_others_lost(warm: Dslm) -> None:
    done = warm("plan", "llama-3.1-8b", "--gpus", "16", "--device", "h100-80gb")
    for words in ("activations", "█", "peak", "in backward", "fits", "slower", "at least", "host"):
        assert words in done.stdout


def test_auto_finds_parallel_sizes_when_nothing_else_fits() -> None:
    cluster = cluster_of(device_named("a100-40gb"), 8)
    data = RECIPE.data.model_copy(update={"sequence_length": 65536})
    batch = RECIPE.batch.model_copy(update={"global_size": 8, "micro_size": 1})
    alone = RECIPE.model_copy(update={"data": data, "batch": batch})
    shared = alone.model_copy(
        update={"parallel": RECIPE.parallel.model_copy(update={"sequence": "auto"})}
    )
    assert not choose(alone, cluster, PROFILE).fits
    plan = choose(shared, cluster, PROFILE, lambda recipe, cluster, sizes: True)
    assert plan.fits
    assert plan.strategy.sequence_parallel > 1
    assert plan.strategy.global_batch_size == 8


def test_a_host_without_room_is_foreseen() -> None:
    parallel = RECIPE.parallel.model_copy(update={"zero_stage": 3, "offload": "all"})
    recipe = RECIPE.model_copy(update={"parallel": parallel})
    cluster = cluster_of(device_named("a100-80gb"), 8)
    memory = choose(recipe, cluster, PROFILE).choice.memory
    assert memory is not None
    # master copy, moments, gradients in fp32 and bf16, parameters: 20 bytes each, over all ranks
    assert memory.host_items["pinned"] == pytest.approx(20 * PROFILE.total, rel=1e-3)
    for room, fits in ((memory.host // 2, False), (memory.host * 2, True)):
        choice = choose(recipe, replace(cluster, host_memory_bytes=room), PROFILE).choice
        assert choice.fits_host is fits
        assert choice.fits is fits


def test_the_price_of_an_hour_gives_the_cost_of_a_run(warm: Dslm) -> None:
    argv = ["plan", "llama-3.2-1b", "--gpus", "8", "--device", "h100-80gb", "--price", "2.5"]
    found = json.loads(warm(*argv, "--json").stdout)["time"]
    assert found["cost"] == pytest.approx(2.5 * found["gpu_hours"])
    assert "costs" in warm(*argv).stdout


BAD = [
    (["plan", "llama-3.2-1b", "--price", "-1"], "--price"),
    (["plan", "llama-3.2-1b", "--price", "2", "--sweep"], "--price"),
    (["plan", "llama-3.1-8b", "--device", "h100-80g"], "h100-80gb"),
    (["plan", "--params", "7.5X"], "7.5X"),
    (["plan", "--params", "nan"], "nan"),
    (["plan", "--params", "0"], "0"),
    (["plan", "llama-3.1-8b", "-H", "nowhere"], "nowhere"),
    (["plan", "llama-3.1-8b", "--device", "h1000"], "h1000"),
    (["plan", "--params", "lots"], "lots"),
    (["plan", "--params", "-3B"], "-3B"),
    (["plan"], "recipe"),
    (["plan", "llama-3.1-8b", "--gpus", "10", "--hosts", "3"], "10"),
    (["plan", "llama-3.1-8b", "--gpus", "0"], "--gpus"),
]


@pytest.mark.parametrize(("argv", "said"), BAD)
def test_nonsense_is_refused(warm: Dslm, argv: list[str], said: str) -> None:
    done = warm(*argv)
    assert done.returncode == 2
    assert said in done.stderr + done.stdout


def test_train_refuses_what_cannot_fit(warm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("words " * 1000)
    done = warm("train", "llama-3.1-70b", "-s", "data.train=corpus.txt", "-s", "parallel.ranks=1")
    assert done.returncode == 4
    assert "GiB" in done.stderr
    assert "--force" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_refusal_names_the_three_nearest_ways_that_fit() -> None:
    from dslm.decide.advice import ways_out
    from dslm.decide.job import resolve_job
    from dslm.recipe.load import load_recipe

    cluster = cluster_of(device_named("a100-80gb"), 8)
    fixed = ["parallel.zero_stage=1", "batch.micro_size=4", "model.activation_checkpointing=false"]
    job = resolve_job(load_recipe("llama-3.1-8b", fixed), cluster)
    assert not job.plan.fits
    ways = ways_out(job)
    assert len(ways) == 3
    for way in ways:
        if way.startswith("`--set"):
            changes = way.removeprefix("`--set ").removesuffix("`").split(" --set ")
            keys = [change.split("=")[0] for change in changes]
            kept = [given for given in fixed if given.split("=")[0] not in keys]
            loaded = load_recipe("llama-3.1-8b", [*kept, *changes])
            assert resolve_job(loaded, cluster).plan.fits
