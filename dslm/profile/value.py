"""The profile of a model: one frozen value with everything that planning needs to know of it.

A pass is a sequence of parts: what comes before the layers, each layer, what comes between stacks
of layers, the head with the loss. A part's levels are bytes alive after its operations, relative
to its start, as polynomials in samples and tokens; the backward pass has its own. Gradients of
parameters are no part of the levels: each is counted apart from the moment when it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dslm.profile.polynomial import Polynomial

FORMAT = 3
STAGE_3 = " stage 3"  # the end of a pass's name: with the inputs of frozen weights, kept there
Sequence = tuple[tuple[int, int], ...]  # of parts: which, and how often in a row


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters of one name (numbers of layers left out) and one shape."""

    name: str
    shape: tuple[int, ...]
    count: int
    trained: bool
    layer: bool  # within a repeated layer
    expert: bool  # one of many experts of a layer, or all of them
    shared: bool  # tensor parallelism shares it between ranks, by the model's own plan
    table: bool = False  # the embedding of tokens
    head: bool = False  # multiplied with to give the logits
    adapter: bool = False  # beside a frozen model
    element: int = 0  # bytes

    @property
    def size(self) -> int:
        """Elements of one."""
        size = 1
        for side in self.shape:
            size *= side
        return size

    @property
    def total(self) -> int:
        """Elements of all."""
        return self.size * self.count


@dataclass(frozen=True, slots=True)
class Work:
    """What one kind of operation does in a part."""

    kind: str  # matmul | attention | memory
    launches: Polynomial
    flops: Polynomial
    moved: Polynomial  # bytes read and written


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A stretch of a pass."""

    name: str  # start, layer, between, head
    peaks: tuple[tuple[Polynomial, int], ...]  # levels that can be the highest; gradients by then
    end: Polynomial  # level at the end
    split: Polynomial  # of that, what tensor parallelism would split
    gradients: int  # bytes of gradients that were completed in it
    work: tuple[Work, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PassProfile:
    """A forward pass, and a backward pass where there is one."""

    parts: tuple[Part, ...]
    forward: Sequence
    backward: Sequence

    def walk(self, sequence: Sequence) -> Iterator[tuple[Part, int]]:
        """Return the parts of a sequence, and how often each comes in a row."""
        return ((self.parts[number], count) for number, count in sequence)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """A shape that wasn't fitted: by how much the polynomials miss the highest level there."""

    samples: int
    length: int
    recompute: bool
    off: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A model as a trace found it; `passes` is empty where it couldn't be traced, `why` says."""

    model_type: str
    parameters: tuple[ParameterGroup, ...]
    layers: int
    hidden_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    max_positions: int | None
    tied: bool
    attention: str
    element: int
    passes: Mapping[str, PassProfile]  # plain, recompute, evaluation; `… stage 3`, `… single`
    proofs: tuple[Proof, ...]
    versions: Mapping[str, str]
    fixed_length: int = 0  # 1: samples all have the same size, as images have
    drops: bool = False  # has dropout, which a CPU computes in another way than an accelerator
    why: str = ""
    apart: Mapping[str, bool] = field(default_factory=dict)  # see dslm.recipe.packs; empty: unknown
    left_out: Mapping[str, str] = field(default_factory=dict)  # keys of savings it can't have; why

    @property
    def total(self) -> int:
        """Parameters, tied ones once, adapters left out."""
        return sum(g.total for g in self.parameters) - self.adapters

    @property
    def adapters(self) -> int:
        """Trained parameters beside a frozen model."""
        return sum(g.total for g in self.parameters if g.adapter)

    @property
    def trained(self) -> int:
        """Parameters that the optimizer updates."""
        return sum(g.total for g in self.parameters if g.trained)

    @property
    def frozen(self) -> int:
        """Parameters that stay as they are."""
        return sum(g.total for g in self.parameters if not g.trained)

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return max((g.size for g in self.parameters), default=0)

    @property
    def largest_trained(self) -> int:
        """Elements of the largest parameter that the optimizer updates."""
        return max((g.size for g in self.parameters if g.trained), default=0)

    @property
    def trained_head(self) -> int:
        """Elements of the matrix that gives the logits; 0 where it is frozen."""
        return max((g.size for g in self.parameters if g.head and g.trained), default=0)

    @property
    def passed(self) -> int:
        """Elements that only the forward pass needs: a frozen table that is no head as well."""
        return sum(g.total for g in self.parameters if g.table and not (g.head or g.trained))

    @property
    def of_any_device(self) -> bool:
        """Whether a CPU does and keeps the same as an accelerator."""
        return not self.drops and self.attention != "documents"

    @property
    def layer(self) -> int:
        """Parameters of a layer, on average."""
        return sum(g.total for g in self.parameters if g.layer) // max(1, self.layers)

    @property
    def exact(self) -> bool:
        """Whether it was traced, and matched where it was proved."""
        return bool(self.passes) and all(proof.off <= 0.005 for proof in self.proofs)

    @property
    def off(self) -> float:
        """The worst miss of all proofs."""
        return max((proof.off for proof in self.proofs), default=0.0)

    def pass_of(self, name: str, samples: int, *, stage_3: bool = False) -> PassProfile:
        """Return the pass of a mode (plain, recompute, evaluation) for `samples` samples."""
        name += STAGE_3 if stage_3 and name + STAGE_3 in self.passes else ""
        single = self.passes.get(f"{name} single") if samples == 1 else None
        return single or self.passes[name]


def to_document(profile: Profile) -> dict[str, object]:
    """Return compact JSON, with lists where the order is enough."""
    return {
        "format": FORMAT,
        **{
            name: getattr(profile, name)
            for name in (
                "model_type", "layers", "hidden_size", "vocab_size", "heads", "kv_heads",
                "max_positions", "tied", "attention", "element", "fixed_length", "drops",
                "why",
            )
        },
        "versions": dict(profile.versions),
        "apart": dict(profile.apart),
        **({"left_out": dict(profile.left_out)} if profile.left_out else {}),
        "parameters": [
            [g.name, list(g.shape), g.count, _flags(g), g.element] for g in profile.parameters
        ],
        "proofs": [[p.samples, p.length, p.recompute, round(p.off, 6)] for p in profile.proofs],
        "passes": {name: _pass_document(one) for name, one in profile.passes.items()},
    }  # fmt: skip


_FLAGS = ("trained", "layer", "expert", "shared", "table", "head", "adapter")


def _flags(group: ParameterGroup) -> int:
    return sum(getattr(group, name) << bit for bit, name in enumerate(_FLAGS))


def _pass_document(one: PassProfile) -> dict[str, object]:
    return {
        "parts": [
            [
                part.name,
                [[level.written(), gradients] for level, gradients in part.peaks],
                part.end.written(),
                part.split.written(),
                part.gradients,
                [
                    [w.kind, w.launches.written(), w.flops.written(), w.moved.written()]
                    for w in part.work
                ],
            ]
            for part in one.parts
        ],
        "forward": [list(pair) for pair in one.forward],
        "backward": [list(pair) for pair in one.backward],
    }


def from_document(found: Mapping[str, Any]) -> Profile:
    """Return the profile of a document.

    Raises:
        ValueError: it has another format.
    """
    if found.get("format") != FORMAT:
        raise ValueError("a profile of another format")
    values = {
        key: value
        for key, value in found.items()
        if key not in ("format", "parameters", "proofs", "passes")
    }
    return Profile(
        **values,
        parameters=tuple(
            ParameterGroup(
                name=name,
                shape=tuple(shape),
                count=count,
                element=element,
                **{flag: bool(flags >> bit & 1) for bit, flag in enumerate(_FLAGS)},
            )
            for name, shape, count, flags, element in found["parameters"]
        ),
        proofs=tuple(
            Proof(samples=samples, length=length, recompute=recompute, off=off)
            for samples, length, recompute, off in found["proofs"]
        ),
        passes={name: _pass(one) for name, one in found["passes"].items()},
    )


def _pass(found: Mapping[str, Any]) -> PassProfile:
    return PassProfile(
        parts=tuple(
            Part(
                name=name,
                peaks=tuple((Polynomial.read(level), grads) for level, grads in peaks),
                end=Polynomial.read(end),
                split=Polynomial.read(split),
                gradients=gradients,
                work=tuple(
                    Work(kind, *(Polynomial.read(values) for values in amounts))
                    for kind, *amounts in work
                ),
            )
            for name, peaks, end, split, gradients, work in found["parts"]
        ),
        forward=tuple((number, count) for number, count in found["forward"]),
        backward=tuple((number, count) for number, count in found["backward"]),
    )
