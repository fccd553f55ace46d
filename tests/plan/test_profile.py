"""Profiles: those that ship are current, what they say holds, and no family is described."""

from __future__ import annotations

import ast
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from dslm.ask.call import ask
from dslm.ask.measure import PRECISIONS, profile_requests
from dslm.ask.profile import profile_request
from dslm.cluster.wrong_versions import release_numbers
from dslm.decide.checks.model import HEADS
from dslm.profile.polynomial import Polynomial, monomials
from dslm.profile.store import SHIPPED, key_of, preset_parameters, stored
from dslm.profile.value import Profile, from_document, to_document
from dslm.recipe.catalog import Preset, entries
from dslm.recipe.load import load_recipe
from dslm.worker.trace.fit import Fit
from dslm.worker.trace.model import build
from dslm.worker.trace.passes import Tracer
from tests.support.presets import distinct

ROOT = Path(__file__).parent.parent.parent
PRESETS = [preset for preset in entries() if preset.architecture]
DISTINCT = distinct()


def _built(architecture: dict[str, Any], task: str) -> int:
    sizes = {k: v for k, v in architecture.items() if k != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **sizes)
    with torch.device("meta"), no_init_weights():
        model = getattr(transformers, HEADS[task]).from_config(config)
        model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def test_every_preset_has_a_profile_that_ships() -> None:
    assert len(PRESETS) >= 30
    for preset in PRESETS:
        recipe = load_recipe(preset.name).recipe
        for on_cpu in (False, True):
            request = profile_request(recipe, preset.architecture, on_cpu=on_cpu)
            found = stored(request, cache=False)
            assert found is not None, f"{preset.name}: run `make profiles`"
            assert found.exact, preset.name
            assert found.total == preset_parameters()[preset.name]


def test_what_doctor_measures_ships_too() -> None:
    for cuda, precisions in PRECISIONS.items():
        for request in profile_requests(precisions, cuda=cuda):
            found = stored(request, cache=False)
            assert found is not None, "run `make profiles`"
            assert found.exact


def test_what_ships_is_small() -> None:
    assert SHIPPED.stat().st_size < 500_000


@pytest.mark.parametrize("preset", DISTINCT, ids=[preset.name for preset in DISTINCT])
def test_a_preset_has_as_many_parameters_as_transformers_builds(preset: Preset) -> None:
    assert preset_parameters()[preset.name] == _built(preset.architecture, preset.task)


def test_what_ships_is_what_a_trace_finds_today() -> None:
    preset = next(preset for preset in PRESETS if preset.name == "gpt2-124m")
    recipe = load_recipe(preset.name).recipe
    request = profile_request(recipe, preset.architecture, on_cpu=False)
    shipped = stored(request, cache=False)
    assert shipped is not None
    found = from_document(ask("dslm.worker.trace", {"requests": [request]})["profiles"][0])
    if _releases(found) == _releases(shipped):  # of whatever build: nothing is computed
        alike = replace(found, versions=shipped.versions)
        assert to_document(alike) == to_document(shipped), "run `make profiles`"


def _releases(profile: Profile) -> dict[str, tuple[int, ...]]:
    return {name: release_numbers(version) for name, version in profile.versions.items()}


def test_what_is_whole_is_fitted_to_the_last_byte() -> None:
    shapes = [(b, t) for b in (2, 3) for t in (256, 512, 1024)]
    fit, draw = Fit.of(shapes), random.Random(0)
    for _ in range(500):
        whole = tuple(draw.choice((0, draw.randrange(10**k))) for k in (4, 9, 6, 4, 6, 9))
        made = Polynomial(tuple(map(float, whole)))
        assert fit.one([made.at(monomials(*shape)) for shape in shapes]) == made


def test_inputs_that_are_kept_elsewhere_are_traced_without_memory() -> None:
    architecture = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    changed = {"model.offload_activations": True, "model.activation_checkpointing": True}
    recipe = load_recipe("llama-3.2-1b", [f"{key}={value}" for key, value in changed.items()])
    request = profile_request(recipe.recipe, architecture, on_cpu=False)
    traced = Tracer(build(request), meta=True).run(2, 16, recompute=True)
    assert {"layer 0", "layer 1"} <= {stretch.name for stretch in traced.backward}


def test_a_profile_survives_being_written() -> None:
    recipe = load_recipe("t5-base").recipe
    found = stored(profile_request(recipe, dict(recipe.model.architecture), on_cpu=False))
    assert found is not None
    document = json.loads(json.dumps(to_document(found)))
    assert to_document(from_document(document)) == document


def test_a_profile_is_found_by_all_that_changes_the_model() -> None:
    keys = set()
    for change in (
        "precision=fp32", "lora.rank=4", "lora.target_modules=[q_proj]", "model.liger=true",
        "model.attention=eager", "task=classify", "seed=1",
    ):  # fmt: skip
        recipe = load_recipe("llama-3.2-1b", [change]).recipe
        keys.add(key_of(profile_request(recipe, dict(recipe.model.architecture), on_cpu=False)))
    assert len(keys) == 7
    plain = load_recipe("llama-3.2-1b").recipe
    assert key_of(profile_request(plain, dict(plain.model.architecture), on_cpu=False)) in keys


def test_the_planner_compares_no_type_of_model() -> None:
    for file in sorted((ROOT / "dslm/plan").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                names = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert "model_type" not in names | texts, f"{file.name}:{node.lineno}"
