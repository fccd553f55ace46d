"""Experts shared by ranks: which models DeepSpeed knows, and what it needs of transformers."""

from __future__ import annotations

import pytest
import torch
from deepspeed.module_inject.auto_ep_presets.registry import PRESET_MODELS
from deepspeed.utils import z3_leaf_module
from transformers.utils import output_capturing

from dslm.worker.layout.experts import gather_together, let_registry_take_names
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


class _Mixture(torch.nn.Module):
    """A mixture of experts of nobody's: three experts, and a router under any name."""

    def __init__(self, experts: int = 3, outputs: int = 3) -> None:
        super().__init__()
        self.choice = torch.nn.Linear(4, outputs)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(experts))


def test_mixtures_are_gathered_together_whatever_they_are_called() -> None:
    model = torch.nn.ModuleDict({
        "mixture": _Mixture(),
        "layers": torch.nn.ModuleList([torch.nn.Linear(4, 4), _Mixture(4, 4)]),
        "a head of classes beside layers": _Mixture(3, 5),
    })  # fmt: skip
    assert gather_together(model) == ["mixture", "layers.1"]
    assert [
        z3_leaf_module(m) for m in (model.get_submodule(n) for n in ("mixture", "layers.0"))
    ] == [True, False]
