"""A ledger: what lives in memory, term by term, each with its bytes, its life and its source.

Terms add up: what a rank needs at a moment is the sum of the terms that live then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Moment(StrEnum):
    """When memory is looked at, in the order of a run."""

    INIT = "init"
    FORWARD = "forward"
    LOSS = "loss"  # the backward pass begins
    LAST_LAYER = "last layer"  # its backward pass, the first of the layers'
    BETWEEN = "between"  # the layer in between that needs the most
    FIRST_LAYER = "first layer"  # its backward pass, and what is behind it
    GRADIENTS = "gradients"  # the last gradient is complete
    STEP = "step"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    EXPORT = "export"


RUN = frozenset(Moment) - {Moment.INIT}
LAYERS = frozenset({Moment.LAST_LAYER, Moment.BETWEEN, Moment.FIRST_LAYER})
BACKWARD = LAYERS | {Moment.LOSS, Moment.GRADIENTS}
PASS = LAYERS | {Moment.FORWARD, Moment.LOSS}
# the phases that people are told of, and measurements are compared in
PHASES = {
    "init": frozenset({Moment.INIT}),
    "forward": frozenset({Moment.FORWARD}),
    "backward": BACKWARD,
    "step": frozenset({Moment.STEP}),
    "evaluation": frozenset({Moment.EVALUATION}),
    "checkpoint": frozenset({Moment.CHECKPOINT}),
    "export": frozenset({Moment.EXPORT}),
}


class Place(StrEnum):
    """Where a term lies."""

    DEVICE = "device"
    PINNED = "pinned"  # host memory that the device copies from
    LOCKED = "locked"  # pinned by mlock(2), as `ulimit -l` lets a process
    PAGEABLE = "pageable"
    SHARED = "shared"  # the same, of /dev/shm


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """Bytes of one rank, when they are there, and where the number comes from."""

    name: str
    bytes: int
    lives: frozenset[Moment]
    source: str
    place: Place = Place.DEVICE
    # parameters | gradients | optimizer | activations | buffers | context | process
    kind: str = "buffers"


def at(terms: Iterable[Term], moment: Moment) -> int:
    """Return bytes on the device at a moment."""
    return sum(t.bytes for t in terms if t.place is Place.DEVICE and moment in t.lives)


def phases(terms: Iterable[Term]) -> dict[str, int]:
    """Return the most of each phase."""
    listed = tuple(terms)
    return {name: max(at(listed, moment) for moment in moments) for name, moments in PHASES.items()}


def placed(terms: Iterable[Term], *places: Place) -> int:
    """Return bytes that lie somewhere, all through a run."""
    return sum(t.bytes for t in terms if t.place in places)
