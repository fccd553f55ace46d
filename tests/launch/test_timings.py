"""The waiting times of the two sides of an attempt go together."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dslm.run import timings

ROOT = Path(__file__).parents[2]
SIDES = ("dslm/launch/control.py", "dslm/launch/supervise.py", "dslm/worker/guard.py")


@pytest.mark.parametrize("way", timings.ENDINGS)
def test_nothing_of_a_run_is_left_in_time(way: str) -> None:
    assert 0 < timings.ENDINGS[way] <= timings.ALL_GONE_SECONDS


def test_the_supervisor_notices_a_lost_host_before_its_ranks_do() -> None:
    assert (
        timings.SUPERVISOR_GIVES_UP_SECONDS + timings.BEAT_SECONDS < timings.RANK_GIVES_UP_SECONDS
    )
    assert timings.SILENT_SECONDS > 3 * timings.BEAT_SECONDS


def test_neither_side_keeps_a_waiting_time_of_its_own() -> None:
    """Two private numbers in two processes, one to exceed the other, were the fault."""
    found = []
    for file in SIDES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                found += [name for name in names if name.endswith("_SECONDS")]
    assert found == ["_SLOW_EVERY_SECONDS"]  # how often a slow rank is named: nobody waits for it
