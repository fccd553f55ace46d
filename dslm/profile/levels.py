"""The highest levels of a pass at some samples and tokens, from a profile's polynomials."""

from __future__ import annotations

from dataclasses import dataclass

from dslm.profile.polynomial import Monomials, monomials
from dslm.profile.value import PassProfile, Profile

LAYER = "layer"  # the name of a layer's part


@dataclass(frozen=True, slots=True)
class ById:
    """A profile as a key: compared by identity, since it is large."""

    profile: Profile

    def __hash__(self) -> int:
        return id(self.profile)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.profile is self.profile


@dataclass(frozen=True, slots=True)
class Level:
    """The highest of one part of a backward pass."""

    name: str
    let_go: float  # where each gradient is let go as soon as it is complete
    kept: float  # where all of them stay
    gradients: float  # bytes that are complete when the part begins


@dataclass(frozen=True, slots=True)
class Levels:
    """Bytes of a pass."""

    kept: float  # after the forward pass
    forward: float  # at most, in the forward pass
    before_head: float  # after the last layer
    backward: tuple[Level, ...]  # in the order of the backward pass, the head first

    @property
    def head(self) -> Level:
        """The start of the backward pass: the loss and what gives the logits."""
        return self.backward[0]


def levels(one: PassProfile, samples: int, length: int, *, tensor: int = 1) -> Levels:
    """The levels of a pass over `samples` sequences of `length` tokens, shared by `tensor` ranks.

    Of tensors that are not as wide as the hidden state each rank has its part (Megatron-LM, arXiv
    1909.08053, section 3): the share that a layer keeps of them is taken for its peaks too.
    """
    at = monomials(samples, length)
    shares = _shares(one, at, tensor)
    level = forward = before_head = 0.0
    for part, count in one.walk(one.forward):
        share = shares if part.name == LAYER else 1.0
        end = part.end.at(at) * share
        # levels change by the same in each of a row: the highest is in its first or its last
        highest = max(polynomial.at(at) for polynomial, _ in part.peaks) * share
        forward = max(forward, level + highest, level + (count - 1) * end + highest)
        before_head = level
        level += count * end
    return Levels(level, forward, before_head, tuple(_backward(one, at, level, shares)))


def _shares(one: PassProfile, at: Monomials, tensor: int) -> float:
    """What a rank has of a layer's activations."""
    if tensor == 1:
        return 1.0
    layers = [(part, count) for part, count in one.walk(one.forward) if part.name == LAYER]
    kept = sum(count * part.end.at(at) for part, count in layers)
    split = sum(count * part.split.at(at) for part, count in layers)
    return 1 - min(1.0, split / max(kept, 1.0)) * (1 - 1 / tensor)


def _backward(one: PassProfile, at: Monomials, level: float, shares: float) -> list[Level]:
    found, gradients = [], 0.0
    for part, count in one.walk(one.backward):
        share = shares if part.name == LAYER else 1.0
        end = part.end.at(at) * share
        values = [(polynomial.at(at) * share, grads) for polynomial, grads in part.peaks]
        let_go = max(value for value, _ in values)
        stays = max(value + grads for value, grads in values)
        for number in (0, count - 1) if count > 1 else (0,):
            start, before = level + number * end, gradients + number * part.gradients
            found.append(Level(part.name, start + let_go, start + before + stays, before))
        level += count * end
        gradients += count * part.gradients
    return found


def flops(one: PassProfile, samples: int, length: int) -> dict[str, float]:
    """FLOPs of a pass by kind of operation."""
    at, found = monomials(samples, length), {"matmul": 0.0, "attention": 0.0, "memory": 0.0}
    for sequence in (one.forward, one.backward):
        for part, count in one.walk(sequence):
            for work in part.work:
                found[work.kind] += count * work.flops.at(at)
    return found
