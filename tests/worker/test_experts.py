"""Experts shared by ranks: which models DeepSpeed knows, and what it needs of transformers."""

from __future__ import annotations

import pytest
from deepspeed.module_inject.auto_ep_presets.registry import PRESET_MODELS
from transformers.utils import output_capturing

from dslm.worker.layout.experts import let_registry_take_names
from dslm.zero.experts import EXPERT_TYPES


def test_the_types_are_those_that_deepspeed_has_presets_of() -> None:
    known = {kind for preset in PRESET_MODELS.values() for kind in preset.hf_model_types}
    assert known == EXPERT_TYPES


def test_transformers_registry_still_needs_another_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, `let_registry_take_names` can go."""
    import transformers.modeling_utils

    registry = output_capturing._CAN_RECORD_REGISTRY
    with pytest.raises(TypeError, match="positional arguments"):
        registry.get("a name", None)
    monkeypatch.setattr(output_capturing, "_CAN_RECORD_REGISTRY", registry)
    monkeypatch.setattr(transformers.modeling_utils, "_CAN_RECORD_REGISTRY", registry)
    let_registry_take_names()
    ours = output_capturing._CAN_RECORD_REGISTRY
    marker = object()
    assert ours.get("a name", marker) is marker
    assert ours.get(registry) == {}
    ours["a name"] = {"router_logits": 1}
    assert ours.get("a name", marker) == {"router_logits": 1}
