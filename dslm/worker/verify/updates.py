"""The optimizer's own rule, fed with a layout's gradients: what each update should be.

The rule is applied to whole parameters in one process, in fp32. It knows nothing of partitions, so
an optimizer whose update depends on them doesn't follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from dslm.recipe.schema import Optimizer, Recipe
from dslm.worker.verify.compare import Difference, Step, difference, ratio_of
from dslm.worker.verify.reference import Tensors

_UPDATE = 5e-3  # of an update in fp32 from the same gradient
_ULP = 2.0**-22  # of a parameter kept in fp32

Rule = Callable[[Optimizer, Tensors, torch.Tensor, torch.Tensor, int], torch.Tensor]


def _adam(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Adam with L2 (arXiv 1412.6980), and AdamW (arXiv 1711.05101, algorithm 2)."""
    apart = given.name == "adamw"
    if not apart:
        gradient = gradient + given.weight_decay * before
    one, two = given.betas
    first = one * state.get("first", torch.zeros_like(before)) + (1 - one) * gradient
    second = two * state.get("second", torch.zeros_like(before)) + (1 - two) * gradient**2
    state |= {"first": first, "second": second}
    mean = first / (1 - one**steps)
    root = (second / (1 - two**steps)).sqrt() + given.eps
    decayed = given.lr * given.weight_decay * before if apart else 0.0
    return -given.lr * mean / root - decayed


def _sgd(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    return -given.lr * (gradient + given.weight_decay * before)


def _lion(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Lion (arXiv 2302.06675, algorithm 2)."""
    one, two = given.betas
    mean = state.get("first", torch.zeros_like(before))
    state["first"] = two * mean + (1 - two) * gradient
    direction = (one * mean + (1 - one) * gradient).sign()
    return -given.lr * (direction + given.weight_decay * before)


RULES: Mapping[str, Rule] = {"adamw": _adam, "adam": _adam, "sgd": _sgd, "lion": _lion}


class Updates:
    """The rule of a recipe's optimizer, and what it keeps of each parameter."""

    def __init__(self, recipe: Recipe) -> None:
        self._optimizer = recipe.optimizer
        self._rule = RULES.get(recipe.optimizer.name)
        self._state: dict[str, Tensors] = {}
        self._steps = 0

    @property
    def knows(self) -> bool:
        """Whether the rule of this recipe's optimizer is known here."""
        return self._rule is not None

    def compare(self, step: Step, number: int) -> list[Difference]:
        """Compare each parameter's update with the rule; every step must be given, in order."""
        if self._rule is None:
            return []
        self._steps += 1
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in step.gradients.values()))
        clip = self._optimizer.grad_clip
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        differences = []
        for name, before in step.before.items():
            gradient, after = step.gradients.get(name), step.after.get(name)
            if after is None or name in step.unknown:
                continue
            wanted = torch.zeros_like(before)
            if gradient is not None:
                state = self._state.setdefault(name, {})
                wanted = self._rule(self._optimizer, state, before, gradient * scale, self._steps)
            found = after.double() - before.double()
            slack = _ULP * float(before.double().norm())
            far = float((found - wanted.double()).norm())
            size = max(float(wanted.double().norm()), 1e-30)
            if not far <= _UPDATE * size + slack:
                differences.append(
                    difference("update", name, number, far / size, _UPDATE, ratio_of(found, wanted))
                )
        return differences
