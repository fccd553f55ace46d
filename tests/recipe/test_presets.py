"""Presets: many, small files, each of the size that is published."""

from __future__ import annotations

import re

import pytest

from dslm.profile.store import preset_parameters
from dslm.recipe.catalog import Preset, entries
from dslm.recipe.load import load_recipe

PRESETS = {preset.name: preset for preset in entries()}
# Parameters, to the last one, as the models' files on the Hub have them (safetensors' metadata) and
# public repositories that loaded them have written down; looked up in November 2026.
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496, "llama-3.3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624,
    "gemma-3-1b": 999_885_952, "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984,
    "mistral-7b": 7_248_023_552, "mixtral-8x7b": 46_702_792_704,
    "mistral-nemo-12b": 12_247_782_400, "mistral-small-24b": 23_572_403_200,
    "phi-4": 14_659_507_200, "phi-4-mini-instruct": 3_836_021_760, "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384, "smollm3-3b": 3_075_098_624,
    "olmo2-1b": 1_484_916_736, "olmo2-7b": 7_298_617_344, "olmo3-7b": 7_298_011_136,
    "gpt-oss-20b": 20_914_757_184, "deepseek-v2-lite": 15_706_484_224, "glm-4-9b": 9_400_279_040,
    "granite-3.3-8b-instruct": 8_170_864_640, "falcon3-1b": 1_669_408_768,
    "falcon3-3b": 3_227_655_168, "apertus-8b": 8_053_338_176,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512, "deepseek-r1-distill-llama-8b": 8_030_261_248,
    "qwen2.5-coder-7b": 7_615_616_512, "gpt2-124m": 124_439_808, "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080, "gpt2-1.5b": 1_557_611_200, "pythia-160m": 162_322_944,
    "pythia-1.4b": 1_414_647_808, "bert-base": 109_514_298, "bert-large": 335_174_458,
    "roberta-base": 124_697_433, "roberta-large": 355_412_057, "t5-base": 222_903_552,
    # less the part that sees: 416,866,032, and 2,950,272 or 4,424,832 between the two
    "gemma-3-4b": 4_300_079_472 - 419_816_304, "gemma-3-12b": 12_187_325_040 - 421_290_864,
    # the instruct model has 7 words of 4,096 more
    "granite-3.3-8b": 8_170_864_640 - 7 * 4096,
    # with a head for two classes
    "vit-base": 85_798_656 + 2 * 769,
}  # fmt: skip
# billions, of models whose exact number was not found; 7b's config.json as litgpt/config.py has it
ROUNDED = {"falcon3-7b": 7.456, "falcon3-10b": 10.31}
_OWN = [name for name in PRESETS if not name.startswith("quickstart")]
_TUNED = re.compile("-(instruct|it|chat)$")  # a model of the same size as its base
CHATS = [preset for preset in PRESETS.values() if "chats" in preset.description]


def test_there_are_many_models_and_each_file_is_small() -> None:
    assert len(PRESETS) >= 100
    for preset in PRESETS.values():
        assert len(preset.path.read_text().splitlines()) <= 26, preset.name


@pytest.mark.parametrize("name", _OWN)
def test_a_preset_has_the_size_that_is_published(name: str) -> None:
    base = name if name in PUBLISHED else _TUNED.sub("", name)
    if base in ROUNDED:
        assert preset_parameters()[name] / 1e9 == pytest.approx(ROUNDED[base], rel=0.0005)
    else:
        assert preset_parameters()[name] == PUBLISHED[base]


@pytest.mark.parametrize("preset", CHATS, ids=[preset.name for preset in CHATS])
def test_a_chat_model_learns_answers_and_goes_with_purposes(preset: Preset) -> None:
    loaded = load_recipe(preset.name)
    assert loaded.recipe.task == "sft"
    assert loaded.recipe.model.init == "pretrained"
    with_adapters = load_recipe(preset.name, ["extends=qlora"]).recipe
    assert (with_adapters.task, with_adapters.quantize) == ("sft", "nf4")
    assert load_recipe(preset.name, ["extends=dpo"]).recipe.task == "dpo"
