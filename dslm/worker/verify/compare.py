"""What a layout computed beside what it should have: deviations, and which are beyond the noise.

Each step is compared by itself: the reference takes the parameters that the layout had before the
step, so the first wrong step is known and what follows from it isn't blamed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dslm.worker.layout.ranks import Layout
from dslm.worker.verify.noise import LEAST, Noise
from dslm.worker.verify.reference import Found, Tensors, deviation, stretch, usual_size

_FAINT = 1e-3  # of the usual size of a gradient: a parameter may lack one that is fainter


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One recorded step of a layout, on rank 0."""

    before: Tensors  # fp32 parameters
    gradients: Tensors  # after all ranks' have been summed, before clipping
    norm: float | None  # before clipping, as the engine says
    losses: Mapping[int, tuple[float, int]]  # by place: sum and count; {} where not known
    read: Mapping[int, int]  # how often each sample was trained on, by place
    loss: float  # of the global batch, as it is reported
    after: Tensors
    settings: tuple[Mapping[str, tuple[float, ...]], ...] = ()  # of each rank's optimizer
    idle: tuple[str, ...] = ()  # a module of each rank that doesn't know that it is trained
    draws: tuple[int, ...] = ()  # a number for the random state of each rank
    differ: str = ""  # what ranks don't hold alike that must
    unknown: frozenset[str] = frozenset()  # parameters whose gradient the engine doesn't show
    muon: frozenset[str] = frozenset()  # parameters that Muon updates


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    # samples, loss, gradient, norm, update, replicas, parameters, learning rate, optimizer, dropout
    kind: str
    name: str  # of the parameter or sample
    step: int  # from 1
    deviation: float
    allowed: float
    ratio: float | None = None  # what it is times what it should be, where all are alike


def compare_gradients(
    step: Step, number: int, wanted: Found, noise: Noise, precision: str
) -> list[Difference]:
    """Compare every parameter's gradient, what is missing and what there is too much of."""
    differences: list[Difference] = []
    scale = usual_size(wanted.gradients)
    if not scale:  # which proves nothing: the data teaches nothing, such as a single class
        return [difference("gradient", "all of them are exactly 0", number, 0.0, 0.0, None)]
    for name, value in wanted.gradients.items():
        if name in step.unknown:
            continue
        allowed = noise.allowed(name, precision)
        found = step.gradients.get(name)
        if found is None or found.shape != value.shape:
            if float(value.norm()) > _FAINT * scale:
                differences.append(difference("gradient", name, number, 1.0, allowed, 0.0))
            continue
        far = deviation(found, value, scale)
        if far <= allowed:  # by other choices: then they must stretch it as far, too
            far, allowed = stretch(found, value, scale), noise.allowed_stretch(name, precision)
        if far > allowed:
            ratio = ratio_of(found, value)
            differences.append(difference("gradient", name, number, far, allowed, ratio))
    for name in sorted(set(step.gradients) - set(wanted.gradients)):
        differences.append(difference("parameters", name, number, math.inf, 0.0, None))
    return differences


def compare_losses(
    step: Step, number: int, wanted: Found, noise: Noise, precision: str
) -> list[Difference]:
    """Compare the loss of every sample and of the global batch."""
    allowed = noise.allowed_loss(wanted.loss, precision)
    differences = []
    for place, (value, count) in wanted.losses.items():
        found = step.losses.get(place)
        if found is None or not count:
            continue
        mean, own = value / count, found[0] / max(found[1], 1)
        far = abs(own - mean) / max(abs(mean), 1e-6)
        if not far <= 2 * allowed or found[1] != count:
            differences.append(
                difference(
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
        differences.append(difference("loss", "the global batch", number, far, allowed, ratio))
    return differences


def compare_norm(step: Step, number: int, precision: str) -> list[Difference]:
    """Compare the norm that clipping used with that of the gathered gradient."""
    if step.norm is None or not step.gradients:
        return []
    own = math.sqrt(sum(float(g.double().pow(2).sum()) for g in step.gradients.values()))
    far = abs(step.norm - own) / max(own, 1e-30)
    if far <= max(1e-3, LEAST[precision]):
        return []
    return [difference("norm", "before clipping", number, far, 1e-3, step.norm / max(own, 1e-30))]


def wrong_parameters(names: Sequence[str], number: int) -> list[Difference]:
    """Name parameters that the reference hasn't, an untied table, or that hold other values."""
    return [difference("parameters", name, number, math.inf, 0.0, None) for name in names]


def compare_samples(step: Step, number: int, wanted: Found) -> list[Difference]:
    """Compare which samples were trained on: those of the global batch, each of them once."""
    found = []
    for place in sorted({*wanted.losses, *step.read}):
        times = step.read.get(place, 0)
        if times == 1 and place in wanted.losses:
            continue
        what = "not of this step" if place not in wanted.losses else f"read {times} times"
        name = f"sample {place} is {what if times else 'not read'}"
        found.append(difference("samples", name, number, math.inf, 0.0, None))
    return found


def compare_ranks(
    step: Step, number: int, layout: Layout, *, dropout: bool = False
) -> list[Difference]:
    """Compare what all ranks must hold alike, and what they mustn't.

    Args:
        step: what was recorded.
        number: its number, from 1.
        layout: which ranks compute the same.
        dropout: whether the model drops activations, which ranks must do each by itself, and ranks
            of the same layers alike.
    """
    found = []
    if dropout:
        apart = step.draws[:: layout.tensor]
        if len(set(apart)) < len(apart):
            what = "all ranks draw" if len(set(apart)) == 1 else "some ranks draw"
            found.append(difference("dropout", f"{what} the same", number, math.inf, 0.0, None))
        if any(
            own != step.draws[rank - rank % layout.tensor] for rank, own in enumerate(step.draws)
        ):
            what = "ranks of the same layers draw apart"
            found.append(difference("dropout", what, number, math.inf, 0.0, None))
        for rank, name in enumerate(step.idle):
            if name:
                what = f"rank {rank} trains `{name}` without it"
                found.append(difference("dropout", what, number, math.inf, 0.0, None))
    if step.differ:
        found.append(difference("replicas", step.differ, number, math.inf, 0.0, None))
    return found


def difference(
    kind: str, name: str, step: int, far: float, allowed: float, ratio: float | None
) -> Difference:
    return Difference(kind=kind, name=name, step=step, deviation=far, allowed=allowed, ratio=ratio)


def ratio_of(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """The factor between two tensors, where there is one."""
    size = float(wanted.double().pow(2).sum())
    if not size:
        return None
    factor = float((found.double() * wanted.double()).sum()) / size
    rest = float((found.double() - factor * wanted.double()).norm())
    return factor if rest <= 0.05 * abs(factor) * math.sqrt(size) + 1e-12 else None
