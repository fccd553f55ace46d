"""One process in fp32: loss and gradient of a global batch, document by document.

No ZeRO, no recomputation, no fused kernels. What a sample teaches is told by the task (learnt.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dslm.worker.verify.choices import Choices
from dslm.worker.verify.learnt import Learnt

Tensors = dict[str, torch.Tensor]
_FAINT = 1e-3  # of the usual size of a gradient: below it a parameter has none of its own
_SCALE = 2.0**10  # of a loss in fp16, whose gradients would vanish
_TOGETHER = -1  # the place of what samples have in common
_ROUNDED = 2.0**-7  # of a value: what a copy in bf16 may be off by


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a global batch gives: the loss of each sample as sum and count, and all gradients."""

    losses: dict[int, tuple[float, int]]  # by place
    gradients: Tensors
    choices: Choices = field(default_factory=Choices)  # of experts, in the forward passes

    @property
    def loss(self) -> float:
        """The mean over all that is learnt."""
        total = sum(count for _, count in self.losses.values())
        return sum(value for value, _ in self.losses.values()) / max(total, 1)

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return float(
            torch.stack([g.double().pow(2).sum() for g in self.gradients.values()]).sum().sqrt()
        )


class Reference:
    """A model in one process: in fp32, or in another format to measure its noise."""

    def __init__(self, model: nn.Module, learnt: Learnt) -> None:
        self.model = model
        self.model.train()
        self._learnt = learnt
        half = any(p.dtype == torch.float16 for p in model.parameters())
        self._scale = _SCALE if half else 1.0

    @property
    def format(self) -> torch.dtype:
        """The number format that it computes in."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def begin(self) -> None:
        """Before the first step, with the values that it starts from."""
        self._learnt.begin(self.model)

    def take(self, parameters: Tensors, rounded: torch.dtype = torch.float32) -> list[str]:
        """Take on the values of parameters; names that this model doesn't have.

        Args:
            parameters: the values.
            rounded: the number format in which a layout computes with them.
        """
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in parameters.items():
                if name in own and own[name].shape == value.shape:
                    seen = value.to(rounded) if value.is_floating_point() else value
                    own[name].copy_(seen.to(own[name].dtype))
        return sorted(set(parameters) - set(own))

    def unlike(self, parameters: Tensors) -> list[str]:
        """Name the parameters whose values are others than this model's own."""
        own = dict(self.model.named_parameters())
        return [
            name
            for name, value in parameters.items()
            if name in own
            and own[name].shape == value.shape
            and not torch.allclose(own[name].detach().float(), value, rtol=_ROUNDED, atol=1e-6)
        ]

    def trained(self) -> list[str]:
        """Names of the parameters that get a gradient."""
        return [name for name, p in self.model.named_parameters() if p.requires_grad]

    def loss(self, samples: Sequence[dict[str, Any]]) -> float:
        """The mean loss of samples, as an evaluation computes it."""
        self.model.eval()
        with torch.no_grad():
            self._learnt.prepare(self.model, samples)
            total = sum(float(self._learnt.loss(self.model, sample)) for sample in samples)
        self.model.train()
        return total / max(sum(self._learnt.count(sample) for sample in samples), 1)

    def find(
        self,
        samples: Sequence[dict[str, Any]],
        micro_batch: int = 1,
        choices: Choices | None = None,
    ) -> Found:
        """Loss and gradients of a global batch: the mean over all that is learnt in it.

        Args:
            samples: as they are stored.
            micro_batch: samples whose gradients are summed in the model's own number format.
            choices: how experts are chosen; None: by their scores.
        """
        choices = choices or Choices()
        choices.of(_TOGETHER)
        with torch.no_grad(), choices:
            self._learnt.prepare(self.model, samples)
        counts = {int(s["place"]): self._learnt.count(s) for s in samples}
        total = max(sum(counts.values()), 1)
        sums: Tensors = {}
        losses: dict[int, tuple[float, int]] = {}
        for start in range(0, len(samples), micro_batch):
            self.model.zero_grad(set_to_none=True)
            for sample in samples[start : start + micro_batch]:
                place = int(sample["place"])
                choices.of(place)
                with choices:
                    value = self._learnt.loss(self.model, sample)
                (value * (self._scale / total)).backward()
                losses[place] = (float(value.detach()), counts[place])
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    found = parameter.grad.detach().float() / self._scale
                    sums[name] = sums[name] + found if name in sums else found.clone()
        self.model.zero_grad(set_to_none=True)
        return Found(losses=losses, gradients=sums, choices=choices)


def deviation(found: torch.Tensor, wanted: torch.Tensor, usual: float) -> float:
    """The distance of a tensor from what it should be, relative to its size.

    Args:
        found: any shape.
        wanted: the same shape.
        usual: the usual size of an element: a gradient far below it counts as one of that size.
    """
    distance = float((found.double() - wanted.double()).norm()) / _size(wanted, usual)
    return distance if math.isfinite(distance) else math.inf


def stretch(found: torch.Tensor, wanted: torch.Tensor, usual: float) -> float:
    """How far a tensor is too long or too short along what it should be; at most its deviation."""
    size = _size(wanted, usual)
    along = float(((found.double() - wanted.double()) / size * (wanted.double() / size)).sum())
    return abs(along) if math.isfinite(along) else math.inf


def _size(wanted: torch.Tensor, usual: float) -> float:
    least = _FAINT * usual * math.sqrt(wanted.numel())
    return max(float(wanted.double().norm()), least, 1e-30)


def usual_size(gradients: Mapping[str, torch.Tensor]) -> float:
    """The root mean square of all elements."""
    count = sum(g.numel() for g in gradients.values())
    total = sum(float(g.double().pow(2).sum()) for g in gradients.values())
    return math.sqrt(total / max(count, 1))
