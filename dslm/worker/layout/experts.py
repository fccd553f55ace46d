"""Experts shared by ranks: what DeepSpeed's AutoEP needs of the installed transformers."""

from __future__ import annotations

from typing import Any

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
