"""From the stretches of several passes to parts with polynomials.

Passes of several shapes make the same operations, so the level after each is a polynomial of its
own; those that can be the highest somewhere are kept. Where a model makes other operations for
another length, only the highest level is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dslm.profile.polynomial import Polynomial, monomials
from dslm.profile.value import Part, PassProfile, Work
from dslm.worker.trace.layers import Layer
from dslm.worker.trace.passes import PassTrace
from dslm.worker.trace.timeline import Stretch

Shape = tuple[int, int]
# where a level that is the highest counts: samples and tokens that people train with
_GRID = [(b, t) for b in (1, 2, 8, 64, 512) for t in (16, 128, 1024, 8192, 131072)]
_LOST = 100 * np.finfo(float).eps  # of the largest value, by solving: another CPU sums otherwise
_KINDS = ("matmul", "attention", "memory")


@dataclass(frozen=True, slots=True)
class Fit:
    """Finds the coefficients of the monomials that the shapes can tell apart."""

    columns: tuple[int, ...]
    matrix: np.ndarray  # (shapes, columns)

    @classmethod
    def of(cls, shapes: Sequence[Shape]) -> Fit:
        """The fit of passes of these shapes: of one length, or of one number of samples, less."""
        lengths, samples = {t for _, t in shapes}, {b for b, _ in shapes}
        if len(lengths) == 1:
            columns: tuple[int, ...] = (2, 5)
        elif len(samples) == 1:
            columns = (0, 1, 2)  # of one sample, B L² and L² are the same
        else:
            columns = (0, 1, 2, 3, 4, 5)
        rows = np.array([[monomials(b, t)[n] for n in columns] for b, t in shapes], dtype=float)
        return cls(columns, rows)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Coefficients (6, n) of values (shapes, n)."""
        scale = np.abs(self.matrix).max(axis=0)
        solved = np.linalg.lstsq(self.matrix / scale, values, rcond=None)[0] / scale[:, None]
        found = np.zeros((6, values.shape[1]))
        found[list(self.columns)] = solved
        near = np.round(found)
        # bytes are whole: what is next to a whole number is it, as far as a machine can tell
        lost = np.zeros_like(found)
        lost[list(self.columns)] = _LOST * np.abs(values).max(axis=0) / scale[:, None]
        next_to = np.maximum(1e-3 * np.maximum(1, np.abs(near) * 1e-6), lost)
        return np.where(np.abs(found - near) < next_to, near, found)

    def one(self, values: Sequence[float]) -> Polynomial:
        """Fit the polynomial of values, one a shape."""
        return Polynomial(tuple(self(np.array(values, dtype=float)[:, None])[:, 0].tolist()))


def fitted(
    traces: Sequence[PassTrace], shapes: Sequence[Shape], layers: list[Layer]
) -> PassProfile:
    """Fit one pass to passes of several shapes."""
    fit = Fit.of(shapes)
    parts: list[Part] = []

    def sequence(which: str) -> tuple[tuple[int, int], ...]:
        runs = [getattr(trace, which) for trace in traces]
        if len({tuple(s.name for s in run) for run in runs}) > 1:
            raise ValueError("another order of layers for another length")
        made = [(run[0].name, _part(run, fit)) for run in zip(*runs, strict=True)]
        found: list[tuple[int, int]] = []
        for part in _all_layers(made, layers, backward=which == "backward"):
            if part not in parts:
                parts.append(part)
            number = parts.index(part)
            if found and found[-1][0] == number:
                found[-1] = (number, found[-1][1] + 1)
            else:
                found.append((number, 1))
        return tuple(found)

    forward = sequence("forward")
    backward = sequence("backward")
    return PassProfile(parts=tuple(parts), forward=forward, backward=backward)


def _all_layers(made: list[tuple[str, Part]], layers: list[Layer], *, backward: bool) -> list[Part]:
    """The parts of all layers: for those that were skipped, the part of the layer like them.

    A layer may come several times in a row, where a model uses it again.
    """
    by_name = dict(made)
    second = {}
    for kind in {layer.kind for layer in layers}:
        alike = [n for n, layer in enumerate(layers) if layer.kind == kind]
        second[kind] = alike[min(1, len(alike) - 1)]
    places = {(layer.stack, layer.number): n for n, layer in enumerate(layers)}
    step = -1 if backward else 1
    found: list[Part] = []
    for name, part in made:
        found.append(part)
        what, _, number = name.partition(" ")
        if what != "layer":
            continue
        layer = layers[int(number)]
        at = layer.number + step
        while (place := places.get((layer.stack, at))) is not None and not layers[place].runs:
            found.append(by_name[f"layer {second[layers[place].kind]}"])
            at += step
    return found


def _part(run: Sequence[Stretch], fit: Fit) -> Part:
    name = run[0].name.partition(" ")[0]
    kinds = {"layer": "layer", "after": "between", "before": "between"}
    return Part(
        name=kinds.get(name, name),
        peaks=_peaks(run, fit),
        end=fit.one([s.end for s in run]),
        split=fit.one([s.split for s in run]),
        gradients=run[0].gradients,
        work=tuple(
            Work(
                kind,
                fit.one([sum(w[0] == kind for w in s.work) for s in run]),
                fit.one([sum(w[1] for w in s.work if w[0] == kind) for s in run]),
                fit.one([sum(w[2] for w in s.work if w[0] == kind) for s in run]),
            )
            for kind in _KINDS
            if any(w[0] == kind for s in run for w in s.work)
        ),
    )


def _peaks(run: Sequence[Stretch], fit: Fit) -> tuple[tuple[Polynomial, int], ...]:
    """The levels that are the highest somewhere, with and without the gradients."""
    gradients = [tuple(p.gradients for p in s.points) for s in run]
    if len(set(gradients)) > 1:  # other operations for other lengths
        most = run[0].gradients
        level = fit.one([max(p.level for p in s.points) for s in run])
        both = fit.one([max(p.level + p.gradients for p in s.points) - most for s in run])
        return ((level, 0), (both, most))
    values = np.array([[p.level for p in s.points] for s in run], dtype=float)
    coefficients = fit(values)
    grid = np.array([monomials(b, t) for b, t in _GRID], dtype=float) @ coefficients
    stays = grid + np.array(gradients[0], dtype=float)
    chosen = {int(n) for rows in (grid, stays) for n in rows.argmax(axis=1)}
    found = {(Polynomial(tuple(coefficients[:, n].tolist())), gradients[0][n]) for n in chosen}
    return tuple(sorted(found, key=lambda pair: (pair[1], pair[0].of)))
