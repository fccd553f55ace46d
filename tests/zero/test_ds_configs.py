"""What a preset of a feature sets is what dslm's own table says that the feature is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.job import resolve_job
from dslm.presets import preset_path
from dslm.recipe.load import load_recipe
from dslm.zero.generate import leaves
from dslm.zero.lint import lint
from scripts.ds_configs import STRATEGIES

ROOT = Path(__file__).parents[2]
# preset: the recipe's settings, and the parts of the config that must be alike
FEATURES = {
    "twin-flow": (
        "parallel={zero_stage: 3, offload: optimizer, offload_ratio: 0.5}",
        "zero_optimization.offload_optimizer.",
    ),
    "super-offload": (
        "parallel={zero_stage: 3, offload: optimizer, super_offload: true}",
        "zero_optimization.offload_optimizer.",
    ),
    "zenflow": (
        "parallel={zero_stage: 2, offload: optimizer, zenflow: true}",
        "zero_optimization.zenflow.",
    ),
    "zeropp": ("parallel={zero_stage: 3, zeropp: true}", "zero_optimization.zero_"),
    "autotp": ("parallel={zero_stage: 1, tensor: 2}", "tensor_parallel."),
    "sequence-parallel": ("parallel={zero_stage: 3, sequence: 2}", "sequence_parallel_size"),
}


@pytest.mark.parametrize("preset", FEATURES)
def test_a_preset_sets_what_the_recipe_would(preset: str) -> None:
    setting, part = FEATURES[preset]
    cluster = Cluster(hosts=(Host("localhost", 8),), device=device_named("h100-80gb"))
    made = resolve_job(load_recipe("llama-3.2-1b", [setting]), cluster).config.values
    path = preset_path("ds_configs", preset, ".json")
    assert path is not None
    theirs = {k: v for k, v in leaves(json.loads(path.read_text())) if k.startswith(part)}
    ours = {key: value for key, value in leaves(made) if key.startswith(part)}
    assert theirs
    assert theirs == ours


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
def test_the_linter_finds_nothing_wrong_with_a_preset(strategy: object) -> None:
    path = preset_path("ds_configs", getattr(strategy, "name", ""), ".json")
    assert path is not None
    assert not [f for f in lint(json.loads(path.read_text())) if f.severity == "error"]
