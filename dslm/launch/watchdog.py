"""Detect stalls and stragglers from what ranks report, and name the rank to blame.

What the ranks said in, judgement out. Pure: knows no process and no clock of its own.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dslm.launch.control import RankState
from dslm.launch.outcome import Difference, Odd
from dslm.run import timings
from dslm.run.words import Phase

_LEAST_SECONDS = 60.0  # a garbage collection, a slow disk, a long evaluation batch
_STEPS = 30.0  # this many times the usual step is no longer a hiccup
_PLANNED_STEPS = 100.0  # the plan may be wrong, and a first step compiles and connects
_HOUR = 3600.0
# How long a phase may go on without any progress and without computing, where no step time tells:
# longer than torch.distributed lets a collective wait (default_pg_timeout, 30 minutes over gloo).
_USUAL_SECONDS = 2 * _HOUR  # of a script nothing is known but whether it computes
_PHASE_SECONDS: Mapping[str, float] = {
    Phase.JOINING: _HOUR,  # imports from a slow disk; an operator is built
    Phase.DATA: _HOUR,  # every batch of documents is progress
    Phase.MODEL: 4 * _HOUR,  # hundreds of GiB are fetched or read, and nothing says how far it is
    Phase.PARTITIONING: 2 * _HOUR,  # parameters are spread, optimizers made, operators built
    Phase.FIRST_STEP: 2 * _HOUR,  # kernels are compiled, the first collectives connect
    Phase.SAVING: 2 * _HOUR,
    Phase.EXPORTING: 2 * _HOUR,
}
_STEPPING = (Phase.TRAINING, Phase.EVALUATING)
_SLOW_RATIO = 1.3
_SLOW_SHARE = 0.05  # of the step: less is noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds in which nothing may happen.

    Attributes:
        training: while training or evaluating; None: scaled to the step time.
        join: until every rank has come.
        planned_step: seconds that the plan gives a step; None: there is no plan.
    """

    training: float | None
    join: float
    planned_step: float | None = None

    def of(self, phase: str, step_seconds: float | None) -> float:
        """Return how long a phase may last without any progress.

        Until two steps are known only the plan tells how long one is.
        """
        known = self.training
        if known is None and step_seconds is not None:
            known = max(_LEAST_SECONDS, _STEPS * step_seconds)
        if phase in _STEPPING and known is not None:
            return known
        usual = _PHASE_SECONDS.get(phase, _USUAL_SECONDS)
        return max(usual, known or 0.0, _PLANNED_STEPS * (self.planned_step or 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """No rank has made progress for this long."""

    seconds: float
    phase: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Slow:
    """The slowest rank, its own seconds per step, and how many times the median they are."""

    rank: int
    host: str
    seconds: float
    ratio: float


class StepClock:
    """Seconds per optimizer step, from what the ranks say; the mean of the last few."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def note(self, ranks: Collection[RankState], now: float) -> None:
        """Take in how far the ranks are."""
        step = min((rank.step for rank in ranks), default=0)
        if step and (not self._seen or step > self._seen[-1][1]):
            self._seen = [*self._seen[-9:], (now, step)]

    @property
    def seconds(self) -> float | None:
        """Seconds per step; None before there were two."""
        if len(self._seen) < 2:
            return None
        (since, first), (until, last) = self._seen[0], self._seen[-1]
        return (until - since) / (last - first)


def stalled(
    ranks: Collection[RankState], limits: Limits, step_seconds: float | None, now: float
) -> Stall | None:
    """Return how long the run as a whole has stood still, if that is too long.

    Ranks wait for each other, so one that makes progress speaks for all; and one that computes is
    not stalled, however long its step takes. But ranks that wait over NCCL compute as well, so
    where one says nothing at all, not even that it lives, only progress counts.
    """
    living = [rank for rank in ranks if rank.lives]
    if not living:
        return None
    latest = max(living, key=lambda rank: rank.progress_at)
    # a beat may be late on a full host: no shorter than what counts as silence
    limit = max(limits.of(latest.phase, step_seconds), timings.SILENT_SECONDS)
    silent = any(now - rank.beat_at > limit for rank in living)
    active_at = latest.progress_at if silent else max(rank.active_at for rank in living)
    seconds = now - active_at
    return Stall(seconds=seconds, phase=latest.phase) if seconds > limit else None


def differing(ranks: Collection[RankState], now: float) -> Odd | None:
    """Return the rank that is not like the others, and in what; None: there are no others, or none.

    Of two ranks the one that waits for the other is the one in a collective.
    """
    living = [rank for rank in ranks if rank.lives]
    if len(living) < 2:
        return None
    silent = [rank for rank in living if now - rank.beat_at > timings.SILENT_SECONDS]
    if silent and len(silent) < len(living):
        quietest = min(silent, key=lambda rank: rank.beat_at)
        seconds = now - quietest.beat_at
        return _odd(quietest, Difference.SILENT, seconds=seconds)
    places = Counter(innermost(rank.stacks) for rank in living if rank.stacks)
    if len(places) > 1:
        rarest = min(places, key=lambda place: places[place])
        odd = [rank for rank in living if rank.stacks and innermost(rank.stacks) == rarest]
        if places[rarest] < max(places.values()) or len(living) == 2:
            odd = odd if len(living) > 2 else [r for r in living if not _waits(r.stacks)] or odd
            return _odd(odd[0], Difference.PLACE, place=innermost(odd[0].stacks))
    behind = min(living, key=lambda rank: rank.progress)
    if any(rank.progress > behind.progress for rank in living):
        return _odd(behind, Difference.BEHIND)
    return None


def _odd(rank: RankState, difference: Difference, *, seconds: float = 0.0, place: str = "") -> Odd:
    return Odd(
        rank=rank.rank,
        host=rank.host,
        difference=difference,
        seconds=seconds,
        place=place,
        step=rank.step,
        phase=rank.phase,
    )


def slowest(ranks: Collection[RankState], step_seconds: float | None) -> Slow | None:
    """The rank whose own work takes much longer than that of the others; None: there is none."""
    known = [(rank.work_seconds, rank) for rank in ranks if rank.work_seconds is not None]
    if len(known) < 2:
        return None
    seconds, rank = max(known, key=lambda pair: pair[0])
    others = statistics.median(work for work, other in known if other is not rank)
    if seconds < _SLOW_RATIO * others or seconds - others < _SLOW_SHARE * (step_seconds or 0.0):
        return None
    return Slow(rank=rank.rank, host=rank.host, seconds=seconds, ratio=seconds / max(others, 1e-9))


def innermost(stacks: str | None) -> str:
    """Return the innermost call of the main thread: `FUNCTION (FILE:LINE)`."""
    lines = [
        line.strip()
        for line in (stacks or "").split("\n\nThread ")[0].splitlines()
        if line.strip().startswith('File "')
    ]
    if not lines:
        return "nowhere"
    place, _, function = lines[-1].rpartition(", in ")
    file, _, line = place.removeprefix('File "').partition('", line ')
    return f"{function} ({file.rsplit('/', 1)[-1]}:{line})"


def _waits(stacks: str | None) -> bool:
    """Return whether a rank's main thread is inside a collective operation."""
    return "distributed_c10d.py" in (stacks or "").split("\n\nThread ")[0]
