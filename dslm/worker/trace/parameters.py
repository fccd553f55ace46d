"""The parameters of a model in groups: those of one name (without numbers) and one shape."""

from __future__ import annotations

import re
from typing import Any

from dslm.profile.value import ParameterGroup
from dslm.worker.trace.layers import layers_of
from dslm.worker.trace.model import Traced

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def groups_of(traced: Traced) -> tuple[ParameterGroup, ...]:
    """Return every parameter, tied ones once."""
    model, base = traced.model, traced.base
    repeated = {id(p) for layer in layers_of(model) for p in layer.module.parameters()}
    table, head = _weight(base.get_input_embeddings), _weight(base.get_output_embeddings)
    plan = getattr(base, "_tp_plan", None) or {}
    found: dict[tuple[Any, ...], int] = {}
    for name, parameter in model.named_parameters():
        short = _NUMBER.sub("*", name)
        expert = "expert" in short and "shared" not in short
        key = (
            short, tuple(parameter.shape), parameter.requires_grad, id(parameter) in repeated,
            expert, any(_fits(pattern, short) for pattern in plan), parameter is table,
            parameter is head, parameter.requires_grad and base is not model,
            parameter.element_size(),
        )  # fmt: skip
        found[key] = found.get(key, 0) + 1
    return tuple(
        ParameterGroup(
            name=name, shape=shape, count=count, trained=trained, layer=layer, expert=expert,
            shared=shared, table=is_table, head=is_head, adapter=adapter, element=element,
        )
        for (
            name, shape, trained, layer, expert, shared, is_table, is_head, adapter, element
        ), count
        in found.items()
    )  # fmt: skip


def _fits(pattern: str, name: str) -> bool:
    return f".{pattern}." in f".{name}."


def _weight(get: Any) -> Any:
    """The matrix of an embedding or a head; None where the model has none that it names."""
    try:
        module = get()
    except (NotImplementedError, AttributeError):
        return None
    return getattr(module, "weight", None)
