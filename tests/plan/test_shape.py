"""The parameter count of every preset is what transformers builds from the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from dslm.plan.shape import shape_of
from dslm.recipe.catalog import Preset, entries

CLASSES = {
    **dict.fromkeys(("pretrain", "sft", "dpo", "sequence"), AutoModelForCausalLM),
    "classify": AutoModelForSequenceClassification,
    "mlm": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "vision": AutoModelForImageClassification,
}
PRESETS = entries()


def _built(architecture: dict[str, Any], task: str) -> int:
    sizes = {k: v for k, v in architecture.items() if k != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **sizes)
    with torch.device("meta"):
        model = CLASSES[task].from_config(config)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS, ids=[preset.name for preset in PRESETS])
def test_a_preset_has_as_many_parameters_as_transformers_builds(preset: Preset) -> None:
    found = shape_of(preset.architecture, preset.task).parameters
    assert found == _built(preset.architecture, preset.task)


@pytest.mark.parametrize("name", ["gpt2-124m", "qwen3-1.7b", "mistral-7b", "roberta-base"])
def test_a_classifier_has_a_small_head(name: str) -> None:
    architecture = next(preset.architecture for preset in PRESETS if preset.name == name)
    assert shape_of(architecture, "classify").parameters == _built(architecture, "classify")
