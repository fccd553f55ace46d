"""What a layout computed beside what it should have: deviations, and which are beyond the noise.

Each step is compared by itself: the reference takes the parameters that the layout had before the
step, so the first wrong step is known and what follows from it isn't blamed. The update is checked
against the optimizer's own rule fed with the layout's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dslm.recipe.schema import Recipe
from dslm.worker.verify.reference import Found, Tensors

FACTOR = 4.0  # how far beyond the measured noise a deviation is a difference
LEAST = {"fp32": 3e-4, "bf16": 1.5e-2, "fp16": 4e-3}  # of relative deviations, whatever the noise
_UPDATE = 5e-3  # of an update in fp32 from the same gradient
_ULP = {"fp32": 2.0**-22, "bf16": 2.0**-22, "fp16": 2.0**-22}  # of a parameter kept in fp32
_FAINT = 1e-3  # of the usual size of a gradient: below it a parameter has none of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One recorded step of a layout, on rank 0."""

    before: Tensors  # fp32 parameters
    gradients: Tensors  # after all ranks' have been summed, before clipping
    norm: float | None  # before clipping, as the engine says
    losses: Mapping[int, tuple[float, int]]  # by place: sum and count; {} where not known
    loss: float  # of the global batch, as it is reported
    after: Tensors
    rates: tuple[float, ...] = ()  # the learning rate of each rank
    draws: tuple[int, ...] = ()  # a number for the random state of each rank
    differ: str = ""  # what ranks don't hold alike that must


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    kind: str  # loss, gradient, norm, update, replicas, parameters, learning rate
    name: str  # of the parameter or sample
    step: int  # from 1
    deviation: float
    allowed: float
    ratio: float | None = None  # what it is times what it should be, where all are alike


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What the recipe's number format itself makes of a gradient, by parameter."""

    gradients: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0

    def allowed(self, name: str, precision: str) -> float:
        """The deviation of a gradient that is no difference."""
        return max(LEAST[precision], FACTOR * self.gradients.get(name, 0.0))


def noise_of(exact: Found, ways: Sequence[Found]) -> Noise:
    """Measure the noise: how far the same batch in the recipe's format is from fp32."""
    scale = _usual(exact.gradients)
    worst: dict[str, float] = {}
    pairs = [(exact, way) for way in ways] + [(ways[0], ways[1])] if len(ways) > 1 else []
    for one, other in pairs:
        for name, value in other.gradients.items():
            if name in one.gradients:
                found = deviation(value, one.gradients[name], scale)
                worst[name] = max(worst.get(name, 0.0), found)
    loss = max((abs(way.loss - exact.loss) for way in ways), default=0.0)
    return Noise(gradients=worst, loss=loss)


def deviation(found: torch.Tensor, wanted: torch.Tensor, usual: float) -> float:
    """The distance of a tensor from what it should be, relative to its size.

    Args:
        found: any shape.
        wanted: the same shape.
        usual: the usual size of an element: a gradient far below it counts as one of that size.
    """
    least = _FAINT * usual * math.sqrt(wanted.numel())
    size = max(float(wanted.double().norm()), least, 1e-30)
    distance = float((found.double() - wanted.double()).norm()) / size
    return distance if math.isfinite(distance) else math.inf


def compare_gradients(
    step: Step, number: int, wanted: Found, noise: Noise, precision: str
) -> list[Difference]:
    """Compare every parameter's gradient, what is missing and what there is too much of."""
    differences: list[Difference] = []
    scale = _usual(wanted.gradients)
    for name, value in wanted.gradients.items():
        allowed = noise.allowed(name, precision)
        found = step.gradients.get(name)
        if found is None or found.shape != value.shape:
            if float(value.norm()) > _FAINT * scale:
                differences.append(_difference("gradient", name, number, 1.0, allowed, 0.0))
            continue
        far = deviation(found, value, scale)
        if far > allowed:
            differences.append(
                _difference("gradient", name, number, far, allowed, _ratio(found, value))
            )
    for name in sorted(set(step.gradients) - set(wanted.gradients)):
        differences.append(_difference("parameters", name, number, math.inf, 0.0, None))
    return differences


def compare_losses(
    step: Step, number: int, wanted: Found, noise: Noise, precision: str
) -> list[Difference]:
    """Compare the loss of every sample and of the global batch."""
    allowed = max(LEAST[precision], FACTOR * noise.loss / max(abs(wanted.loss), 1e-6))
    differences = []
    for place, (value, count) in wanted.losses.items():
        found = step.losses.get(place)
        if found is None or not count:
            continue
        mean, own = value / count, found[0] / max(found[1], 1)
        far = abs(own - mean) / max(abs(mean), 1e-6)
        if not far <= 2 * allowed or found[1] != count:
            differences.append(
                _difference(
                    "loss",
                    f"sample {place}",
                    number,
                    far,
                    2 * allowed,
                    own / mean if mean else None,
                )
            )
    far = abs(step.loss - wanted.loss) / max(abs(wanted.loss), 1e-6)
    if not far <= allowed:
        ratio = step.loss / wanted.loss if wanted.loss else None
        differences.append(_difference("loss", "the global batch", number, far, allowed, ratio))
    return differences


def compare_norm(step: Step, number: int, precision: str) -> list[Difference]:
    """Compare the norm that clipping used with that of the gathered gradient."""
    if step.norm is None or not step.gradients:
        return []
    own = math.sqrt(sum(float(g.double().pow(2).sum()) for g in step.gradients.values()))
    far = abs(step.norm - own) / max(own, 1e-30)
    if far <= max(1e-3, LEAST[precision]):
        return []
    return [_difference("norm", "before clipping", number, far, 1e-3, step.norm / max(own, 1e-30))]


def wrong_parameters(names: Sequence[str], number: int) -> list[Difference]:
    """Name parameters that the reference hasn't, an untied table, or that hold other values."""
    return [_difference("parameters", name, number, math.inf, 0.0, None) for name in names]


def compare_ranks(
    step: Step, number: int, rate: float, *, dropout: bool = False
) -> list[Difference]:
    """Compare what all ranks must hold alike, and what they mustn't.

    Args:
        step: what was recorded.
        number: its number, from 1.
        rate: the learning rate that the recipe says.
        dropout: whether the model drops activations, which ranks must do each by itself.
    """
    found = []
    if dropout and len(step.draws) > 1 and len(set(step.draws)) == 1:
        found.append(_difference("dropout", "all ranks draw the same", number, math.inf, 0.0, None))
    if step.differ:
        found.append(_difference("replicas", step.differ, number, math.inf, 0.0, None))
    for rank, own in enumerate(step.rates):
        if abs(own - rate) > 1e-6 * rate:
            found.append(
                _difference(
                    "learning rate",
                    f"rank {rank}",
                    number,
                    abs(own - rate) / rate,
                    1e-6,
                    own / rate,
                )
            )
    return found


class Updates:
    """The optimizer's own rule, fed with a layout's gradients: what each update should be."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._steps = 0

    @property
    def knows(self) -> bool:
        """Whether the rule of this recipe's optimizer is known here."""
        return self._recipe.optimizer.name in ("adamw", "adam", "sgd")

    def compare(self, step: Step, number: int) -> list[Difference]:
        """Compare each parameter's update with the rule; every step must be given, in order."""
        if not self.knows:
            return []
        self._steps += 1
        precision = self._recipe.precision
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in step.gradients.values()))
        clip = self._recipe.optimizer.grad_clip
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        differences = []
        for name, before in step.before.items():
            gradient, after = step.gradients.get(name), step.after.get(name)
            if after is None:
                continue
            wanted = (
                torch.zeros_like(before)
                if gradient is None
                else self._update(name, before, gradient * scale)
            )
            found = after.double() - before.double()
            slack = _ULP[precision] * float(before.double().norm())
            far = float((found - wanted.double()).norm())
            size = max(float(wanted.double().norm()), 1e-30)
            if not far <= _UPDATE * size + slack:
                differences.append(
                    _difference("update", name, number, far / size, _UPDATE, _ratio(found, wanted))
                )
        return differences

    def _update(self, name: str, before: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """One step of AdamW (arXiv 1711.05101, algorithm 2), of Adam with L2, or of SGD."""
        given = self._recipe.optimizer
        rate, decay = given.lr, given.weight_decay
        if given.name == "sgd":
            return -rate * (gradient + self._decay(name, before) * before)
        if given.name == "adam":
            gradient = gradient + decay * before
        first, second = self._moments.get(
            name, (torch.zeros_like(before), torch.zeros_like(before))
        )
        one, two = given.betas
        first = one * first + (1 - one) * gradient
        second = two * second + (1 - two) * gradient * gradient
        self._moments[name] = (first, second)
        mean = first / (1 - one**self._steps)
        root = (second / (1 - two**self._steps)).sqrt() + given.eps
        decayed = rate * decay * before if given.name == "adamw" else 0.0
        return -rate * mean / root - decayed

    def _decay(self, name: str, before: torch.Tensor) -> float:
        # transformers' own groups: neither biases nor norms (Trainer.get_decay_parameter_names)
        kept = name.endswith("bias") or "norm" in name.lower() or before.dim() < 2
        return 0.0 if kept else self._recipe.optimizer.weight_decay


def _difference(
    kind: str, name: str, step: int, far: float, allowed: float, ratio: float | None
) -> Difference:
    return Difference(kind=kind, name=name, step=step, deviation=far, allowed=allowed, ratio=ratio)


def _usual(gradients: Mapping[str, torch.Tensor]) -> float:
    """The root mean square of all elements."""
    count = sum(g.numel() for g in gradients.values())
    total = sum(float(g.double().pow(2).sum()) for g in gradients.values())
    return math.sqrt(total / max(count, 1))


def _ratio(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """The factor between two tensors, where there is one."""
    size = float(wanted.double().pow(2).sum())
    if not size:
        return None
    factor = float((found.double() * wanted.double()).sum()) / size
    rest = float((found.double() - factor * wanted.double()).norm())
    return factor if rest <= 0.05 * abs(factor) * math.sqrt(size) + 1e-12 else None
