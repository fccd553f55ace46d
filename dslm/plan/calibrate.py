"""From measured seconds to a device's speeds: what fits products and passes of small models best.

A pass takes the sum of what its operations need (`dslm.plan.roofline`); measured are products, of
which everything is known, and passes, whose profile says what they do. The unknowns, five for each
precision, are seconds per FLOP and per byte, none of which can be less than nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dslm.cluster.measurement import Measurement, Product, TimedPass
from dslm.cluster.speed import Speed
from dslm.plan.roofline import passes
from dslm.profile.levels import ById
from dslm.profile.value import Profile

_ROUNDS = 4000
_PASS_WEIGHT = 3.0  # a pass is what a training does; a product only a part of it
_NOTHING = 1e-30

Row = tuple[tuple[float, ...], float, float]  # amounts, seconds, weight


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The speeds of a precision, and by how much they miss the passes they were fitted to."""

    speed: Speed
    error: float


def calibrate(
    measured: Measurement, profiles: Mapping[str, Sequence[Profile]]
) -> dict[str, Calibrated]:
    """Return speeds by precision.

    Args:
        measured: the answer of `dslm.worker.measure`.
        profiles: by precision, of the models whose passes were measured.
    """
    found = {}
    for precision, models in profiles.items():
        products = [one for one in measured.products if one.precision == precision]
        runs = [one for one in measured.passes if one.precision == precision]
        if not products or not runs:
            continue
        rows = [_of_product(one) for one in products]
        seen = [_of_pass(one, models[one.model]) for one in runs]
        costs = not_negative([*rows, *seen])
        misses = [_miss(costs, amounts, seconds) for amounts, seconds, _ in seen]
        found[precision] = Calibrated(_speed(costs), sum(misses) / len(misses))
    return found


def _of_product(one: Product) -> Row:
    rows, inner, columns = one.rows, one.inner, one.columns
    moved = one.element * (rows * inner + inner * columns + rows * columns)
    return (2.0 * rows * inner * columns, moved, 0.0, 0.0, 1.0), one.seconds, 1.0


def _of_pass(one: TimedPass, profile: Profile) -> Row:
    both = passes(ById(profile), "plain", one.samples, one.length)
    works = [work for each in both for work in (each.layers, each.rest)]
    amounts = (
        sum(work.product_flops for work in works),
        sum(work.product_bytes for work in works),
        sum(work.scores for work in works),
        sum(work.moved for work in works),
        sum(work.launches for work in works),
    )
    return amounts, one.seconds, _PASS_WEIGHT


def _miss(costs: Sequence[float], amounts: Sequence[float], seconds: float) -> float:
    return abs(sum(c * a for c, a in zip(costs, amounts, strict=True)) / seconds - 1)


def _speed(costs: Sequence[float]) -> Speed:
    rates = [1 / max(cost, _NOTHING) for cost in costs[:4]]
    return Speed(
        products=rates[0],
        product_bytes=rates[1],
        attention=rates[2],
        memory=rates[3],
        launch=costs[4],
    )


def not_negative(rows: Sequence[Row]) -> list[float]:
    """Costs of each amount, none below zero, with the least squares of the relative misses.

    Coordinate descent: each cost in turn takes what is best for it, the others given.
    """
    scaled = [[weight * a / seconds for a in amounts] for amounts, seconds, weight in rows]
    wanted = [weight for _, _, weight in rows]
    count = len(scaled[0])
    norms = [sum(row[n] ** 2 for row in scaled) for n in range(count)]
    costs = [0.0] * count
    left = list(wanted)
    for _ in range(_ROUNDS):
        for n in range(count):
            if not norms[n]:
                continue
            step = sum(row[n] * rest for row, rest in zip(scaled, left, strict=True)) / norms[n]
            new = max(0.0, costs[n] + step)
            change = new - costs[n]
            if change:
                left = [rest - row[n] * change for row, rest in zip(scaled, left, strict=True)]
                costs[n] = new
    return costs
