"""Whether a model keeps the documents of a pack apart is measured, whatever its config says."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from dslm.ask.profile import profile_request
from dslm.recipe.catalog import entries
from dslm.recipe.load import load_recipe
from dslm.recipe.packs import BY_LENGTHS, BY_MASK
from dslm.worker.layout.apart import kept_apart
from dslm.worker.trace.profile import apart

CAUSAL, MASKED = "AutoModelForCausalLM", "AutoModelForMaskedLM"
# as they are by default: large ones, of which a small one is made
KEEP = {
    "llama": {BY_MASK: True, BY_LENGTHS: True},
    "qwen3": {BY_MASK: True, BY_LENGTHS: True},
    "gpt2": {BY_MASK: True, BY_LENGTHS: True},
    "gemma2": {BY_MASK: True},
    "opt": {BY_MASK: False, BY_LENGTHS: True},  # its mask is its own
    "mixtral": {BY_MASK: True, BY_LENGTHS: True},
}
LEAK = ("bloom", "mpt", "xglm", "gpt_oss", "falcon", "qwen3_next", "mamba")


@pytest.mark.parametrize("kind", KEEP)
def test_a_mask_or_lengths_keep_documents_apart(kind: str) -> None:
    assert kept_apart(AutoConfig.for_model(kind), CAUSAL) == KEEP[kind]


@pytest.mark.parametrize("kind", LEAK)
def test_a_mask_of_its_own_or_a_recurrence_lets_them_see_each_other(kind: str) -> None:
    assert kept_apart(AutoConfig.for_model(kind), CAUSAL)[BY_MASK] is False


@pytest.mark.parametrize(("kind", "keeps"), [("bert", True), ("fnet", False), ("deberta", False)])
def test_a_masked_model_is_measured_with_its_mask_or_takes_none_of_pairs(
    kind: str, keeps: bool
) -> None:
    assert kept_apart(AutoConfig.for_model(kind), MASKED) == {BY_MASK: keeps}


def test_no_preset_lets_documents_see_each_other() -> None:
    seen: dict[object, str] = {}
    for preset in entries():
        if load_recipe(preset.name).recipe.data.packing:
            seen.setdefault(preset.architecture.get("model_type"), preset.name)
    for kind, name in seen.items():
        if kind is not None:
            recipe = load_recipe(name).recipe
            found = apart(profile_request(recipe, recipe.model.architecture, on_cpu=True))
            assert all(found.values()), name


def test_measuring_leaves_the_random_numbers_as_they_were() -> None:
    import torch

    torch.manual_seed(5)
    before = torch.get_rng_state()
    kept_apart(AutoConfig.for_model("llama"), CAUSAL)
    assert torch.equal(before, torch.get_rng_state())
