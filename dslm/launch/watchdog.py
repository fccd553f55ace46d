"""Has a run come to a stand, and which rank is to blame? Which rank is slow?

What the ranks said in, judgement out. Pure: knows no process and no clock of its own.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from dslm.launch.control import RankState
from dslm.run import timings

_LEAST_SECONDS = 60.0  # a garbage collection, a slow disk, a long evaluation batch
_STEPS = 30.0  # so many times the usual step is no hiccup any more
# Where nothing tells how long it may take (loading a model, saving a checkpoint): as long as
# torch.distributed lets a collective over gloo wait (default_pg_timeout, 30 minutes).
_SLOW_PHASE_SECONDS = 1800.0
_SLOW_RATIO = 1.3
_SLOW_SHARE = 0.05  # of the step: less is noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long nothing may happen, in seconds; `training` None: scaled to the step time."""

    training: float | None
    join: float

    def of(self, phase: str, step_seconds: float | None) -> float:
        """How long a phase may go on without any progress."""
        if phase not in ("training", "evaluating"):
            return max(_SLOW_PHASE_SECONDS, self.training or 0.0)
        if self.training is not None:
            return self.training
        return max(_LEAST_SECONDS, _STEPS * (step_seconds or 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """No rank has made progress for so long."""

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
    """Whether the run as a whole has stood still for too long; ranks wait for each other."""
    living = [rank for rank in ranks if rank.lives]
    if not living:
        return None
    latest = max(living, key=lambda rank: rank.progress_at)
    seconds = now - latest.progress_at
    if seconds <= limits.of(latest.phase, step_seconds):
        return None
    return Stall(seconds=seconds, phase=latest.phase)


def differing(ranks: Collection[RankState], now: float) -> tuple[RankState, str] | None:
    """The rank that is not like the others, and in what; None: they are all alike."""
    living = [rank for rank in ranks if rank.lives]
    silent = [rank for rank in living if now - rank.beat_at > timings.SILENT_SECONDS]
    if silent and len(silent) < len(living):
        quietest = min(silent, key=lambda rank: rank.beat_at)
        return quietest, f"it has said nothing for {now - quietest.beat_at:.0f} s"
    behind = min(living, key=lambda rank: rank.progress, default=None)
    if behind is None or len(living) < 2:
        return (living[0], "it is the only one") if living else None
    places = Counter(innermost(rank.stacks) for rank in living if rank.stacks)
    if len(places) > 1:
        rarest = min(places, key=lambda place: places[place])
        odd = [rank for rank in living if rank.stacks and innermost(rank.stacks) == rarest]
        if places[rarest] < max(places.values()) or len(living) == 2:
            # of two ranks the one that waits for the other is the one in a collective
            odd = odd if len(living) > 2 else [r for r in living if not _waits(r.stacks)] or odd
            return odd[0], f"it is in {innermost(odd[0].stacks)}"
    if any(rank.progress > behind.progress for rank in living):
        return behind, f"it stopped first, at step {behind.step} ({behind.phase})"
    return None


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
    """The innermost call of the main thread: `FUNCTION (FILE:LINE)`."""
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
    """Whether a rank's main thread is inside a collective operation."""
    return "distributed_c10d.py" in (stacks or "").split("\n\nThread ")[0]
