"""Run a target: hypothesis makes the inputs, what is no clear refusal is a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import EXPECTED, Target


@dataclass(slots=True)
class Tally:
    """How often a target was run, and how often it refused its input."""

    executions: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)


def fuzz(target: Target, examples: int, number: int, tally: Tally) -> None:
    """Run a target with some inputs, the same for the same number.

    Raises:
        Exception: what the target raised on the smallest input found.
    """

    def once(value: Any) -> None:
        tally.executions += 1
        try:
            target.run(value)
        except EXPECTED:
            tally.refused += 1

    run: Callable[[], None] = given(target.inputs)(once)
    run = settings(
        max_examples=max(1, examples // target.cost),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(run)
    seed(number)(run)()
