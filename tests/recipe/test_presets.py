"""Presets: many, small files, each of the size that its makers publish."""

from __future__ import annotations

import re

import pytest

from dslm.profile.store import preset_parameters
from dslm.recipe.catalog import Preset, entries
from dslm.recipe.load import load_recipe

PRESETS = {preset.name: preset for preset in entries()}
# billions of parameters as the models' pages on the Hub and their papers count them; of models
# that see (gemma-3 from 4b on), those of the part that reads and writes
PUBLISHED = {
    "llama-3.2-1b": 1.236, "llama-3.2-3b": 3.213, "llama-3.1-8b": 8.030, "llama-3.1-70b": 70.55,
    "qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.544, "qwen2.5-3b": 3.086, "qwen2.5-7b": 7.616,
    "qwen2.5-14b": 14.77, "qwen2.5-32b": 32.76, "qwen2.5-72b": 72.71, "qwen3-0.6b": 0.596,
    "qwen3-1.7b": 1.721, "qwen3-4b": 4.022, "qwen3-8b": 8.191, "qwen3-14b": 14.77,
    "qwen3-32b": 32.76, "qwen3-30b-a3b": 30.53, "gemma-3-1b": 1.000, "gemma-2-2b": 2.614,
    "gemma-2-9b": 9.242, "mistral-7b": 7.248, "mixtral-8x7b": 46.70, "mistral-nemo-12b": 12.25,
    "mistral-small-24b": 23.57, "phi-4": 14.66, "phi-4-mini-instruct": 3.836,
    "smollm2-135m": 0.1345, "smollm2-360m": 0.3618, "smollm2-1.7b": 1.711, "smollm3-3b": 3.075,
    "olmo2-1b": 1.485, "olmo2-7b": 7.299, "olmo3-7b": 7.298, "gpt-oss-20b": 20.91,
    "deepseek-v2-lite": 15.71, "glm-4-9b": 9.400, "granite-3.3-8b": 8.171, "falcon3-1b": 1.669,
    "falcon3-3b": 3.228, "falcon3-7b": 7.456, "falcon3-10b": 10.31, "apertus-8b": 8.053,
    "llama-3.1-405b": 405.9, "llama-3.3-70b": 70.55, "gemma-3-4b": 3.884, "gemma-3-12b": 11.77,
    "deepseek-r1-distill-qwen-7b": 7.616, "deepseek-r1-distill-llama-8b": 8.030,
    "qwen2.5-coder-7b": 7.616, "gpt2-124m": 0.1244, "gpt2-355m": 0.3548, "gpt2-774m": 0.7740,
    "gpt2-1.5b": 1.558, "pythia-160m": 0.1623, "pythia-1.4b": 1.415, "bert-base": 0.1095,
    "bert-large": 0.3352, "roberta-base": 0.1247, "roberta-large": 0.3554, "t5-base": 0.2229,
    "vit-base": 0.0858,
}  # fmt: skip
_OWN = [name for name in PRESETS if not name.startswith("quickstart")]
_TUNED = re.compile("-(instruct|it|chat)$")  # a model of the same size as its base
CHATS = [preset for preset in PRESETS.values() if "chats" in preset.description]


def test_there_are_many_models_and_each_file_is_small() -> None:
    assert len(PRESETS) >= 100
    for preset in PRESETS.values():
        assert len(preset.path.read_text().splitlines()) <= 26, preset.name


@pytest.mark.parametrize("name", _OWN)
def test_a_preset_has_the_size_that_is_published(name: str) -> None:
    published = PUBLISHED.get(name) or PUBLISHED[_TUNED.sub("", name)]
    assert preset_parameters()[name] / 1e9 == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize("preset", CHATS, ids=[preset.name for preset in CHATS])
def test_a_chat_model_learns_answers_and_goes_with_purposes(preset: Preset) -> None:
    loaded = load_recipe(preset.name)
    assert loaded.recipe.task == "sft"
    assert loaded.recipe.model.init == "pretrained"
    with_adapters = load_recipe(preset.name, ["extends=qlora"]).recipe
    assert (with_adapters.task, with_adapters.quantize) == ("sft", "nf4")
    assert load_recipe(preset.name, ["extends=dpo"]).recipe.task == "dpo"
