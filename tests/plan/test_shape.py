"""The parameter count of every preset is what transformers builds from the same numbers."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from dslm.plan.shape import shape_of
from dslm.recipe.catalog import Preset, entries

CLASSES = {
    "pretrain": AutoModelForCausalLM,
    "mlm": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "vision": AutoModelForImageClassification,
}
PRESETS = entries()


@pytest.mark.parametrize("preset", PRESETS, ids=[preset.name for preset in PRESETS])
def test_a_preset_has_as_many_parameters_as_transformers_builds(preset: Preset) -> None:
    sizes = {k: v for k, v in preset.architecture.items() if k != "model_type"}
    config = AutoConfig.for_model(preset.architecture["model_type"], **sizes)
    with torch.device("meta"):
        model = CLASSES[preset.task].from_config(config)
    assert shape_of(preset.architecture).parameters == sum(p.numel() for p in model.parameters())
