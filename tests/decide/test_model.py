"""The plan and the config are of the model that is trained, not of the preset's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.cluster.devices import device_named
from dslm.decide.job import resolve_job
from dslm.decide.model import model_of
from dslm.plan.report import cluster_of
from dslm.recipe.load import load_recipe
from tests.conftest import Dslm

WIDE = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}  # fmt: skip


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(WIDE))
    return path


def _parameters(*overrides: str, preset: str = "smollm2-135m") -> int | None:
    job = resolve_job(load_recipe(preset, overrides), cluster_of(device_named("h100"), 8))
    return job.profile.total if job.profile else None


def test_a_folder_over_a_preset_is_planned_as_itself(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "wide")
    assert 134e6 < (_parameters() or 0) < 136e6
    assert 8.0e9 < (_parameters(f"model.name={folder}") or 0) < 8.1e9
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: smollm2-135m\nmodel:\n  name: {folder}\n")
    assert 8.0e9 < (_parameters(preset=str(mine)) or 0) < 8.1e9
    resolved = resolve_job(load_recipe(str(mine)), cluster_of(device_named("h100"), 8)).recipe
    assert resolved.model.architecture == {}


def test_another_hub_name_over_a_preset_is_not_known(tmp_path: Path) -> None:
    assert _parameters("model.name=somebody/else") is None
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: smollm2-135m\nmodel:\n  name: somebody/else\n  architecture: {hidden_size: 576}\n"
    )
    assert _parameters(preset=str(mine)) is not None  # it says itself which sizes


def test_a_hub_model_that_was_loaded_before_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--somebody--else"
    _folder(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    loaded = load_recipe("smollm2-135m", ["model.name=somebody/else"])
    assert model_of(loaded).architecture == WIDE


def test_a_model_from_scratch_keeps_its_sizes_beside_another_tokenizer(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "wide")
    assert _parameters(f"model.name={folder}", preset="quickstart") == _parameters(
        preset="quickstart"
    )


def test_a_plan_has_the_ranks_that_training_has(dslm: Dslm) -> None:
    for options in ([], ["--device", "cpu"]):
        plan = json.loads(dslm("plan", "quickstart", "--json", *options).stdout)
        assert plan["cluster"]["world_size"] == 2
    told = json.loads(dslm("train", "quickstart", "--dry-run", "--json").stdout)
    assert dict(told["attempt"]["hosts"]) == {"localhost": 2}


def test_a_plan_that_does_not_fit_says_what_would(warm: Dslm) -> None:
    done = warm("plan", "llama-3.1-8b", "--gpus", "1", "--device", "l4", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["fits"] is False
    assert "such devices" in done.stderr
    assert "--force" not in done.stderr


def test_a_config_says_for_which_device_it_is(dslm: Dslm) -> None:
    here = dslm("config", "llama-3.1-8b", "--num-gpus", "8")
    there = dslm("config", "llama-3.1-8b", "--num-gpus", "8", "--device", "h100-80gb")
    assert "8 × cpu" in here.stderr
    assert "--device" in here.stderr
    assert "8 × h100-80gb" in there.stderr
    cpu, gpu = json.loads(here.stdout), json.loads(there.stdout)
    assert cpu["optimizer"]["params"]["torch_adam"] is True
    assert "torch_adam" not in gpu["optimizer"]["params"]
    assert gpu["zero_optimization"]["overlap_comm"] is True
