"""When a run stands still, and which rank is not like the others."""

from __future__ import annotations

from typing import Any

import pytest

from dslm.launch.control import RankState
from dslm.launch.outcome import Difference
from dslm.launch.watchdog import Limits, StepClock, differing, slowest, stalled
from dslm.run.words import Phase

IN_COLLECTIVE = (
    'Thread MainThread:\n  File "a/train.py", line 1, in train\n'
    '  File "torch/distributed/distributed_c10d.py", line 9, in all_reduce\n'
)
IN_DATA = "\n".join(
    (
        "Thread MainThread:",
        '  File "a/train.py", line 1, in train',
        '  File "b/disk.py", line 7, in read',
    )
)


def rank(number: int, **known: Any) -> RankState:
    given: dict[str, Any] = {
        "rank": number, "host": f"w{number}", "pid": 1, "start_time": 1, "parent_pid": 1,
        "parent_start_time": 1, "beat_at": 100.0, "progress": 5, "progress_at": 90.0,
        "phase": "training", "step": 5, **known,
    }  # fmt: skip
    return RankState(**given)


def test_a_run_stands_still_when_no_rank_goes_on() -> None:
    limits = Limits(training=8.0, join=60.0)
    assert stalled([rank(0), rank(1)], limits, 1.0, now=100.0) is not None
    assert stalled([rank(0), rank(1, progress_at=99.0)], limits, 1.0, now=100.0) is None


def test_the_limit_follows_the_step_time() -> None:
    limits = Limits(training=None, join=60.0)
    assert limits.of("training", 0.1) == 60.0
    assert limits.of("training", 10.0) == 300.0
    assert Limits(training=8.0, join=60.0).of("evaluating", 10.0) == 8.0


@pytest.mark.parametrize("phase", ["", *Phase])
@pytest.mark.parametrize("planned", [None, 0.1, 100.0, 1000.0])
def test_before_two_steps_are_known_the_limit_is_far_on_the_safe_side(
    phase: str, planned: float | None
) -> None:
    limits = Limits(training=None, join=60.0, planned_step=planned)
    assert limits.of(phase, None) >= max(3600.0, 50 * (planned or 0.0))


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.TRAINING, Phase.EVALUATING}))
def test_a_short_limit_for_training_is_none_for_what_is_no_step(phase: Phase) -> None:
    assert Limits(training=8.0, join=60.0).of(phase, 0.1) >= 3600.0


def test_a_rank_that_computes_is_not_stalled() -> None:
    limits = Limits(training=8.0, join=60.0)
    waiting = rank(0, progress_at=0.0, computed_at=0.0, beat_at=999.0)
    computing = rank(1, progress_at=0.0, computed_at=999.0, beat_at=999.0)
    assert stalled([waiting, computing], limits, 1.0, now=1000.0) is None
    assert stalled([waiting], limits, 1.0, now=1000.0) is not None


def test_ranks_that_compute_while_they_wait_for_a_silent_one_are_stalled() -> None:
    """Over NCCL a rank that waits uses a whole core, and its GPU as well."""
    limits = Limits(training=8.0, join=60.0)
    waiting = rank(0, progress_at=900.0, computed_at=999.0, beat_at=999.0)
    silent = rank(1, progress_at=900.0, computed_at=900.0, beat_at=900.0)
    assert stalled([waiting, silent], limits, 1.0, now=1000.0) is not None
    assert stalled([waiting, rank(1, beat_at=999.0)], limits, 1.0, now=1000.0) is None


def test_a_rank_that_says_nothing_differs() -> None:
    found = differing([rank(0), rank(1, beat_at=92.0), rank(2)], now=100.0)
    assert found is not None
    assert (found.rank, found.difference, found.seconds) == (1, Difference.SILENT, 8.0)


def test_of_two_ranks_the_one_outside_the_collective_differs() -> None:
    found = differing([rank(0, stacks=IN_COLLECTIVE), rank(1, stacks=IN_DATA)], now=100.0)
    assert found is not None
    assert (found.rank, found.difference) == (1, Difference.PLACE)
    assert found.place == "read (disk.py:7)"


def test_the_rank_with_the_rarest_stack_differs() -> None:
    ranks = [rank(0, stacks=IN_COLLECTIVE), rank(1, stacks=IN_COLLECTIVE), rank(2, stacks=IN_DATA)]
    found = differing(ranks, now=100.0)
    assert found is not None
    assert found.rank == 2


def test_the_rank_that_stopped_first_differs() -> None:
    found = differing([rank(0), rank(1, progress=4, step=4)], now=100.0)
    assert found is not None
    assert (found.rank, found.difference, found.step) == (1, Difference.BEHIND, 4)


def test_ranks_that_are_all_alike_are_not_blamed() -> None:
    assert differing([rank(n, stacks=IN_COLLECTIVE) for n in range(3)], now=100.0) is None


@pytest.mark.parametrize("known", [{}, {"beat_at": 10.0}, {"stacks": IN_COLLECTIVE}])
def test_a_single_rank_differs_from_nobody(known: dict[str, Any]) -> None:
    assert differing([rank(0, **known)], now=100.0) is None


def test_a_slow_rank_is_named_and_noise_is_not() -> None:
    quick = [rank(0, work_seconds=1.0), rank(1, work_seconds=1.1)]
    assert slowest(quick, 2.0) is None
    slow = slowest([*quick, rank(2, work_seconds=3.0)], 4.0)
    assert slow is not None
    assert (slow.rank, slow.host) == (2, "w2")
    assert slow.ratio > 2.5
    tiny = [rank(0, work_seconds=0.001), rank(1, work_seconds=0.002)]
    assert slowest(tiny, 1.0) is None  # a thousandth of a step


def test_the_step_clock_measures_what_all_ranks_have_finished() -> None:
    clock = StepClock()
    clock.note([rank(0, step=1), rank(1, step=1)], now=10.0)
    clock.note([rank(0, step=3), rank(1, step=3)], now=14.0)
    assert clock.seconds == 2.0
