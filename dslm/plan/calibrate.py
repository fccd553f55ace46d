"""From measured seconds to a device's speeds: what fits products and passes of small models best.

A pass takes the sum of what its operations need (`dslm.plan.roofline`); measured are products, of
which everything is known, and passes, whose profile says what they do. Products say what their
FLOPs and bytes cost; what is left of the passes is for other bytes and for launches. Attention's
products are charged as products. No cost is below what the device could do at best, so that a
measurement beside other work gives slow speeds, not senseless ones.
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
_CACHED = 4.0  # times the memory's bandwidth, at which small operations read from caches
_NOTHING = 1e-16  # seconds per FLOP or byte: faster than any device

Row = tuple[tuple[float, ...], float]  # amounts, seconds


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
        of_products = [_of_product(one) for one in products]
        flops, moved, _ = not_negative(of_products, (_NOTHING, _NOTHING, 0.0))
        seen = [_of_pass(one, models[one.model]) for one in runs]
        least = 1 / (_CACHED * measured.memory_bandwidth)
        left = [_without_products(row, flops, moved) for row in seen]
        costs = [flops, moved, flops, *not_negative(left, (least, 0.0))]
        misses = [_miss(costs, amounts, seconds) for amounts, seconds in seen]
        found[precision] = Calibrated(_speed(costs), sum(misses) / len(misses))
    return found


def _of_product(one: Product) -> Row:
    rows, inner, columns = one.rows, one.inner, one.columns
    moved = one.element * (rows * inner + inner * columns + rows * columns)
    return (2.0 * rows * inner * columns, moved, 1.0), one.seconds


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
    return amounts, one.seconds


def _without_products(row: Row, flops: float, moved: float) -> Row:
    """What is left of a pass for its other bytes and launches: a tenth of it at least."""
    amounts, seconds = row
    known = flops * (amounts[0] + amounts[2]) + moved * amounts[1]
    return amounts[3:], max(seconds - known, 0.1 * seconds)


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


def not_negative(rows: Sequence[Row], least: Sequence[float]) -> list[float]:
    """Costs of each amount, none below its least, with the least squares of the relative misses.

    Coordinate descent: each cost in turn takes what is best for it, the others given.
    """
    scaled = [[a / seconds for a in amounts] for amounts, seconds in rows]
    costs = list(least)
    norms = [sum(row[n] ** 2 for row in scaled) for n in range(len(costs))]
    left = [1.0 - sum(c * a for c, a in zip(costs, row, strict=True)) for row in scaled]
    for _ in range(_ROUNDS):
        for n, norm in enumerate(norms):
            if not norm:
                continue
            step = sum(row[n] * rest for row, rest in zip(scaled, left, strict=True)) / norm
            change = max(least[n], costs[n] + step) - costs[n]
            if change:
                left = [rest - row[n] * change for row, rest in zip(scaled, left, strict=True)]
                costs[n] += change
    return costs
