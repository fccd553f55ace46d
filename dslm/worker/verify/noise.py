"""What a number format itself makes of a global batch: the noise that a deviation must be beyond.

Two things are measured. How far gradients in the format are from fp32 where the model chooses the
same experts; and, where a step is beyond that, how far they go when choices that are nearly even
are made the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dslm.worker.verify.choices import Choices, off_by
from dslm.worker.verify.reference import Found, Reference, Tensors, deviation, stretch, usual_size

FACTOR = 4.0  # how far beyond the measured noise a deviation is a difference
LEAST = {"fp32": 3e-4, "bf16": 1.5e-2, "fp16": 4e-3}  # of relative deviations, whatever the noise
_DRAWS = 4  # of scores that are off


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What the recipe's number format itself makes of gradients, by parameter, and of the loss.

    By other choices a gradient gains some tokens and loses others: it turns far, and is stretched
    little. So both are measured, and a factor isn't hidden by them.
    """

    gradients: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0
    chosen: Mapping[str, float] = field(default_factory=dict)  # how far other choices lead
    stretched: Mapping[str, float] = field(default_factory=dict)  # of that, along the gradient
    chosen_loss: float = 0.0  # of a sample, relative

    def allowed(self, name: str, precision: str) -> float:
        """The deviation of a gradient that is no difference."""
        return self._usual(name, precision) + self.chosen.get(name, 0.0)

    def allowed_stretch(self, name: str, precision: str) -> float:
        """The stretch of a gradient that is no difference."""
        return self._usual(name, precision) + self.stretched.get(name, 0.0)

    def allowed_loss(self, loss: float, precision: str) -> float:
        """The relative deviation of a loss that is no difference."""
        usual = max(LEAST[precision], FACTOR * self.loss / max(abs(loss), 1e-6))
        return usual + self.chosen_loss

    def _usual(self, name: str, precision: str) -> float:
        return max(LEAST[precision], FACTOR * self.gradients.get(name, 0.0))


def noise_of(exact: Found, ways: Sequence[Found]) -> Noise:
    """How far the same batch in the recipe's format is from fp32, and one way from another."""
    pairs = [(exact, way) for way in ways]
    pairs += [(ways[0], ways[1])] if len(ways) > 1 else []
    far = [abs(way.loss - exact.loss) for way in ways]
    loss = max((each for each in far if math.isfinite(each)), default=0.0)
    return Noise(gradients=_worst(deviation, pairs, exact), loss=loss)


class Measuring:
    """The reference and a copy of it in the recipe's number format, beside each other."""

    def __init__(self, reference: Reference, own: Reference, micro: int) -> None:
        """Measure with two models; `micro`: samples of a micro batch."""
        self._reference = reference
        self._own = own
        self._micro = micro

    def begin(self, before: Tensors) -> None:
        """Let both models begin with these parameters, which the reference has already."""
        self._own.take(before)
        for each in (self._reference, self._own):
            each.begin()

    def noise(self, before: Tensors, batch: list[dict[str, Any]], exact: Found) -> Noise:
        """The noise of a batch with the reference's choices, in two orders of summation."""
        return noise_of(exact, self._ways(before, batch, exact))

    def closer(self, before: Tensors, batch: list[dict[str, Any]], exact: Found) -> Noise:
        """The noise, and how far a batch's gradients go by choices that are nearly even.

        Scores are off by as much as FACTOR times what the format makes of them.
        """
        ways = self._ways(before, batch, exact)
        off = off_by(exact.choices, ways[0].choices, self._own.format)
        off = {call: FACTOR * each for call, each in off.items()}
        others = [
            self._reference.find(batch, choices=Choices(off=off, seed=seed))
            for seed in range(_DRAWS if off else 0)
        ]
        pairs = [(exact, other) for other in others]
        return replace(
            noise_of(exact, ways),
            chosen=_worst(deviation, pairs, exact),
            stretched=_worst(stretch, pairs, exact),
            chosen_loss=max((_apart(exact, other) for other in others), default=0.0),
        )

    def _ways(self, before: Tensors, batch: list[dict[str, Any]], exact: Found) -> list[Found]:
        self._own.take(before)
        return [
            self._own.find(samples, self._micro, Choices(exact.choices))
            for samples in (batch, batch[::-1])
        ]


def _worst(
    far: Callable[[torch.Tensor, torch.Tensor, float], float],
    pairs: Sequence[tuple[Found, Found]],
    exact: Found,
) -> dict[str, float]:
    """How far gradients of pairs are from each other at most, by parameter."""
    usual = usual_size(exact.gradients)
    worst: dict[str, float] = {}
    for one, other in pairs:
        for name in one.gradients.keys() & other.gradients.keys():
            found = far(other.gradients[name], one.gradients[name], usual)
            if math.isfinite(found):  # else nothing would differ from it
                worst[name] = max(worst.get(name, 0.0), found)
    return worst


def _apart(exact: Found, other: Found) -> float:
    """How far losses of samples are from each other at most, relative."""
    found = [
        abs(other.losses[place][0] - loss) / max(abs(loss), 1e-6)
        for place, (loss, _) in exact.losses.items()
    ]
    return max((each for each in found if math.isfinite(each)), default=0.0)
