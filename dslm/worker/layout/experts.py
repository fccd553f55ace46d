"""Mixtures of experts: what DeepSpeed needs to know of them, and of the installed transformers."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_module
from transformers.utils import output_capturing


class _Registry(dict[str, Any]):
    """transformers' registry of what models record, that takes class names and defaults as well.

    DeepSpeed 0.19.8 uses it as the plain dictionary by class name that it was before transformers
    5.23 (module_inject/auto_ep_presets/base.py), which since then is one by model.
    """

    def __setitem__(self, model: Any, recorded: Any) -> None:
        super().__setitem__(_name(model), recorded)

    def get(self, model: Any, default: Any = None) -> Any:
        """Return what is recorded of a model or a class name."""
        found = super().get(_name(model))
        if found or isinstance(model, str):
            return default if found is None else found
        return {} if default is None else default


def let_registry_take_names() -> None:
    """Put the registry that DeepSpeed can use in place of transformers' own."""
    ours = _Registry()
    dict.update(ours, output_capturing._CAN_RECORD_REGISTRY)
    from transformers import modeling_utils

    output_capturing._CAN_RECORD_REGISTRY = ours
    modeling_utils._CAN_RECORD_REGISTRY = ours


def _name(model: Any) -> str:
    return model if isinstance(model, str) else str(model.__class__)


def gather_together(model: torch.nn.Module) -> list[str]:
    """Let stage 3 gather the experts of a mixture together; the names of those layers.

    Which experts a rank needs depends on its tokens, so ranks that gather them one by one wait for
    each other for ever. A mixture is known by its structure: a list of modules of one class, and
    beside it a router with an output for each of them.
    """
    found = [(name, module) for name, module in model.named_modules() if is_mixture(module)]
    for _, module in found:
        set_z3_leaf_module(module, True)
    return [name for name, _ in found]


def is_mixture(module: torch.nn.Module) -> bool:
    """Return whether a module has a list of experts, and beside it what chooses among them."""
    children = dict(module.named_children())
    counts = {
        len(child)
        for child in children.values()
        if isinstance(child, torch.nn.ModuleList) and len({type(each) for each in child}) == 1
    }
    outputs = {
        getattr(weight, "ds_shape", weight.shape)[0]
        for child in children.values()
        if not isinstance(child, torch.nn.ModuleList)
        and (weight := getattr(child, "weight", None)) is not None
        and len(getattr(weight, "ds_shape", weight.shape)) == 2
    }
    return bool({count for count in counts if count > 1} & outputs)
