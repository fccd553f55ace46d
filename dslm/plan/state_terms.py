"""Terms that DeepSpeed's stages have in common: what stays, is updated, or is on its way."""

from __future__ import annotations

from collections.abc import Iterable

from dslm.plan.ledger import RUN, Moment, Place, Term
from dslm.plan.states import FP32, MemoryInputs, States


def term(
    name: str, bytes_: int, lives: Iterable[Moment], source: str, kind: str = "buffers"
) -> Term:
    """Return a term of the device."""
    return Term(name=name, bytes=bytes_, lives=frozenset(lives), source=source, kind=kind)


def on_host(inputs: MemoryInputs, name: str, bytes_: int, source: str) -> Term:
    """Return a term of the host, for the whole run."""
    place = Place.PINNED if inputs.pinned else Place.PAGEABLE
    return Term(name=name, bytes=bytes_, lives=RUN, source=source, place=place)


def resident_terms(states: States, source: str) -> list[Term]:
    """Return what is there from beginning to end."""
    return [
        term("parameters", states.parameters, RUN, source, "parameters"),
        term("optimizer state", states.optimizer, RUN, source, "optimizer"),
    ]


def update_scratch(inputs: MemoryInputs, elements: int) -> int:
    """What an update needs beside its state and the gradient."""
    return inputs.scratch * FP32 * elements


def gradients_on_their_way(inputs: MemoryInputs) -> int:
    """Gradients on their way: a bucket, or a parameter too large for one, and its flat copy.

    The gradient of a tied table waits for the second half, and is added to it.
    """
    largest = inputs.largest_trained
    table = 3 * inputs.head if inputs.tied else 0
    flat = 2 * largest if largest > inputs.bucket else inputs.bucket
    return inputs.element * max(table, flat)


def head_copies(inputs: MemoryInputs) -> int:
    """The gradient of a head of its own, and its copy, where it is larger than a bucket.

    It is reduced as soon as the next gradient comes. That of a tied head waits within the backward
    pass, where the trace has it.
    """
    large = inputs.head > inputs.bucket and not inputs.tied
    return 2 * inputs.head * inputs.element if large else 0
