"""Which modules of a model are its repeated layers, which of them are alike, and what to run.

A stack is an outermost `ModuleList`. Its layers are of a kind where their classes, parameters and
settings are the same. Of each kind the first two and the last are run, and those between them hand
their input on: they do what the second one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_RUN = 3  # of a kind: the first, the second for all between, the last
# settings of a module that only say where it stands
_PLACE = ("idx", "index", "id", "number", "name", "training")


@dataclass(slots=True)
class Layer:
    """One layer of a stack."""

    module: nn.Module
    stack: int
    number: int  # in its stack
    kind: int
    runs: bool = True


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the layers of all stacks, in the order of the model's definition."""
    found: list[Layer] = []
    kinds: dict[Any, int] = {}
    for stack, modules in enumerate(_stacks(model)):
        for number, module in enumerate(modules):
            kind = kinds.setdefault((stack, _signature(module)), len(kinds))
            found.append(Layer(module, stack, number, kind))
    return found


def choose(layers: list[Layer]) -> None:
    """Choose which layers run: of each kind the first two and the last."""
    for kind in {layer.kind for layer in layers}:
        alike = [layer for layer in layers if layer.kind == kind]
        for layer in alike[2:-1] if len(alike) > _RUN else ():
            layer.runs = False


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if (
            isinstance(child, nn.ModuleList)
            and len(child)
            and any(True for _ in child.parameters())
        ):
            yield child
        else:
            yield from _stacks(child)


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """Return the signature by which two layers are alike."""
    parts: list[Any] = []
    for name, inner in module.named_modules():
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(inner).items())
            if isinstance(value, bool | int | str)
            and not key.startswith("_")
            and not any(key.endswith(end) for end in _PLACE)
        )
        parts.append((name, type(inner).__name__, settings))
    sizes = tuple((name, tuple(p.shape), p.requires_grad) for name, p in module.named_parameters())
    return (*parts, sizes)


class Skips:
    """Lets layers hand on their input instead of running, as the layers beside them show how."""

    def __init__(self) -> None:
        self._last: dict[int, Any] = {}  # of each stack, what its last layer that ran gave

    def after(self, layer: Layer, output: Any) -> None:
        """Note what a layer gave, until the next one of its stack runs."""
        self._last[layer.stack] = output

    def let_go(self, stack: int) -> None:
        """Let go of what a layer of a stack gave."""
        self._last.pop(stack, None)

    def patch(self, layer: Layer) -> None:
        """Make a layer hand on its input."""

        def forward(*args: Any, **settings: Any) -> Any:
            shown = self._last[layer.stack]
            first = shown[0] if isinstance(shown, tuple | list) else shown
            hidden = next(
                value
                for value in (*args, *settings.values())
                if isinstance(value, torch.Tensor)
                and value.shape == first.shape
                and value.dtype == first.dtype
            )
            if isinstance(shown, tuple | list):
                return type(shown)((hidden, *shown[1:]))
            return hidden

        layer.module.forward = forward  # type: ignore[method-assign]
