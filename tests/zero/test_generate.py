"""DeepSpeed itself accepts what the generator makes, for every preset and precision."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dslm.cluster.devices import cpu_device, device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.job import Job, resolve_job
from dslm.presets import preset_names
from dslm.profile.store import stored
from dslm.profile.value import Profile
from dslm.recipe.load import load_recipe
from dslm.zero.generate import leaves
from dslm.zero.lint import lint
from tests.support.presets import distinct

H100 = device_named("h100-80gb")
TABLE = [(preset.name, p) for preset in distinct() for p in ("bf16", "fp16", "fp32")]


@pytest.fixture
def own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped profile of a model stands for it in every precision: no model is traced."""

    def shipped(request: dict[str, Any]) -> Profile | None:
        found = (stored({**request, "precision": name}) for name in ("bf16", "fp32", "fp16"))
        return next((profile for profile in found if profile is not None), None)

    monkeypatch.setattr("dslm.ask.profile.stored", shipped)


def _on(world_size: int, name: str, *overrides: str) -> Job:
    cluster = Cluster(hosts=(Host("localhost", world_size),), device=H100)
    return resolve_job(load_recipe(name, overrides), cluster)


class Ranks:
    """What DeepSpeedConfig asks for the number of data-parallel ranks."""

    def __init__(self, size: int) -> None:
        self.get_data_parallel_world_size = lambda: size
        self.get_sequence_parallel_world_size = lambda: 1


def _deepspeed_config(values: dict[str, Any], ranks: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    import deepspeed.comm as dist
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    return DeepSpeedConfig(json.loads(json.dumps(values)), mpu=Ranks(ranks))


@pytest.mark.usefixtures("own_precision")
@pytest.mark.parametrize(("name", "precision"), TABLE, ids=[f"{n}-{p}" for n, p in TABLE])
def test_deepspeed_accepts_every_preset_in_every_precision(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _on(8, name, f"precision={precision}")
    config = _deepspeed_config(job.config.values, 8, monkeypatch)
    assert config.train_batch_size == job.recipe.batch.global_size
    assert config.zero_optimization_stage == job.plan.strategy.zero_stage
    assert config.bfloat16_config.enabled == (precision == "bf16")
    assert config.float16_config.enabled == (precision == "fp16")
    assert not [f for f in lint(job.config.values) if f.severity == "error"]
    assert "auto" not in [value for _, value in leaves(job.config.values)]


@pytest.mark.parametrize("preset", preset_names("ds_configs", ".json"))
def test_deepspeed_accepts_the_shipped_configs_as_they_are(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dslm.presets import preset_path

    path = preset_path("ds_configs", preset, ".json")
    assert path is not None
    config = _deepspeed_config(json.loads(path.read_text()), 4, monkeypatch)
    assert config.train_batch_size == 32


def test_every_value_has_its_reason() -> None:
    job = _on(
        8,
        "llama-3.2-1b",
        "parallel.zero_stage=2",
        "deepspeed.zero_optimization.sub_group_size=1000000",
    )
    for key, _ in leaves(job.config.values):
        assert job.config.reasons[key].text, key
    sources = {reason.source for reason in job.config.reasons.values()}
    assert sources == {"preset", "recipe", "computed", "override"}
    assert job.config.reasons["zero_optimization.sub_group_size"].source == "override"


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16, 32, 64, 256])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(ranks: int) -> None:
    values = _on(ranks, "llama-3.2-1b").config.values
    micro, steps = values["train_micro_batch_size_per_gpu"], values["gradient_accumulation_steps"]
    assert micro * steps * ranks == values["train_batch_size"] == 256


def test_the_strategies_start_from_their_presets() -> None:
    table = {
        "zero3-offload-all": ["parallel={zero_stage: 3, offload: all}"],
        "zero3-offload-nvme": ["parallel={zero_stage: 3, offload: nvme, nvme_path: /scratch}"],
        "zero1-offload-optimizer": ["parallel={zero_stage: 1, offload: optimizer}"],
        "zero2-offload-optimizer": ["parallel={zero_stage: 2, offload: optimizer}"],
        "zeropp": ["parallel={zero_stage: 3, zeropp: true}"],
        "autotp": ["parallel={zero_stage: 1, tensor: 4}"],
        "sequence-parallel": ["parallel={zero_stage: 3, sequence: 2}"],
    }
    for preset, overrides in table.items():
        config = _on(8, "llama-3.2-1b", *overrides).config
        assert config.preset == preset
    nvme = _on(8, "llama-3.2-1b", *table["zero3-offload-nvme"]).config.values["zero_optimization"]
    assert nvme["offload_param"]["nvme_path"] == "/scratch"
    tensor = _on(8, "llama-3.2-1b", *table["autotp"]).config.values
    assert tensor["tensor_parallel"]["autotp_size"] == 4
    assert (
        tensor["gradient_accumulation_steps"] * tensor["train_micro_batch_size_per_gpu"] * 2 == 256
    )


def test_on_a_cpu_nothing_is_pinned_or_built() -> None:
    cluster = Cluster(hosts=(Host("localhost", 2),), device=cpu_device(8 * 2**30))
    values = resolve_job(load_recipe("quickstart"), cluster).config.values
    assert values["optimizer"]["params"]["torch_adam"] is True
    assert values["optimizer"]["params"]["fused"] is True
    assert values["zero_optimization"]["overlap_comm"] is False
