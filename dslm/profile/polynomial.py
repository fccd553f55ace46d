"""Bytes, FLOPs and launches as polynomials in samples B and tokens of a sample L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Monomials = tuple[float, float, float, float, float, float]


def monomials(samples: int, length: int) -> Monomials:
    """B L², B L, B, L², L and 1."""
    square = length * length
    return (samples * square, samples * length, samples, square, length, 1)


@dataclass(frozen=True, slots=True)
class Polynomial:
    """Coefficients of B L², B L, B, L², L and 1."""

    of: tuple[float, ...]

    def at(self, at: Monomials) -> float:
        """Return the value at `monomials(samples, length)`."""
        a, b, c, d, e, f = self.of
        return a * at[0] + b * at[1] + c * at[2] + d * at[3] + e * at[4] + f * at[5]

    @classmethod
    def read(cls, values: Sequence[float]) -> Polynomial:
        """From coefficients whose last zeros are left out, the constant first."""
        return cls(tuple(reversed([*values, *([0] * (6 - len(values)))])))

    def written(self) -> list[float]:
        """Coefficients, the constant first, without zeros at the end."""
        values = [int(v) if v == int(v) else round(v, 4) for v in reversed(self.of)]
        while values and not values[-1]:
            values.pop()
        return values
