"""Which strategy to try next, from what the plan foresees and what trials have measured.

Values in, values out: runs nothing. A trial corrects the prediction of strategies like it, the more
the more they have in common; one that ran out of memory prunes those that need as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dslm.codec import Count, Seconds, Strict
from dslm.plan.search import Candidate
from dslm.plan.strategy import Strategy

# How much less a trial tells of a strategy that differs from it in one of these.
_WEIGHTS = {
    "zero_stage": 2.0, "offload": 4.0, "activation_checkpointing": 2.0, "tensor_parallel": 4.0,
    "sequence_parallel": 4.0, "expert_parallel": 4.0, "second_partition": 2.0,
}  # fmt: skip
_PER_DOUBLING = 1.5  # of the micro batch
# Nothing left that is foreseen within this of the best: more trials would only compare noise.
ENOUGH = 1.03
_FEW, _MUCH_SLOWER = 3, 1.25
_UNKNOWN = 1.0  # seconds, where the device's speed isn't known: all are alike then


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial(Strict):
    """One strategy that was tried; without seconds where it failed."""

    number: Count
    zero_stage: Count
    offload: str
    micro_batch_size: Count
    activation_checkpointing: bool
    tensor_parallel: Count = 1
    sequence_parallel: Count = 1
    expert_parallel: Count = 1
    second_partition: bool = False
    predicted_seconds: Seconds | None = None
    predicted_bytes: Count | None = None
    seconds: Seconds | None = None
    memory_bytes: Count | None = None
    out_of_memory: bool = False
    given_up: bool = False  # before its last step: it was too slow to win
    why: str = ""  # it failed

    def of(self, strategy: Strategy) -> bool:
        """Return whether it tried this strategy."""
        return all(getattr(self, name) == getattr(strategy, name) for name in KEYS)


KEYS = (
    "zero_stage", "offload", "micro_batch_size", "activation_checkpointing", "tensor_parallel",
    "sequence_parallel", "expert_parallel", "second_partition",
)  # fmt: skip


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the fastest trial."""
    measured = [trial for trial in trials if trial.seconds is not None]
    return min(measured, key=lambda trial: trial.seconds or math.inf, default=None)


def hopeless(seconds: Sequence[float], trials: Sequence[Trial]) -> bool:
    """Whether a trial can't win any more, by the seconds of its steps so far.

    Even its fastest step, of a few, is much slower than the steps of the best.
    """
    fastest = best(trials)
    if fastest is None or fastest.seconds is None or len(seconds) < _FEW:
        return False
    return min(seconds) > _MUCH_SLOWER * fastest.seconds


def upcoming(candidates: Sequence[Candidate], trials: Sequence[Trial]) -> Candidate | None:
    """Return the strategy to try next; None where none can be expected to be better.

    The first trials are as different as they can be: one of each stage, offload and recomputation,
    the most promising of it; a correction is worth little before.
    """
    left = [
        one
        for one in candidates
        if one.fits
        and not any(trial.of(one.strategy) for trial in trials)
        and not any(_as_large(one, trial) for trial in trials if trial.out_of_memory)
    ]
    if not left:
        return None
    tried = {_kind(trial) for trial in trials}
    new = [one for one in left if _kind(one.strategy) not in tried]
    following = min(left, key=lambda one: foreseen(one, trials))
    fastest = best(trials)
    if fastest is None or fastest.seconds is None:
        return following
    limit = fastest.seconds * ENOUGH
    if new:
        promising = min(new, key=lambda one: foreseen(one, trials))
        # a kind that nobody has tried is worth a look even if it is foreseen as slower
        if foreseen(promising, trials) < limit * _CURIOSITY:
            return promising
    return following if foreseen(following, trials) < limit else None


_CURIOSITY = 1.4


def foreseen(candidate: Candidate, trials: Sequence[Trial]) -> float:
    """Seconds of a step as predicted, corrected by trials of strategies like it."""
    seconds = candidate.time.step_seconds if candidate.time else _UNKNOWN
    total = logs = 0.0
    for trial in trials:
        if trial.seconds is None:
            continue
        weight = math.exp(-_distance(candidate.strategy, trial))
        total += weight
        logs += weight * math.log(trial.seconds / (trial.predicted_seconds or _UNKNOWN))
    return seconds * math.exp(logs / total) if total else seconds


def _distance(strategy: Strategy, trial: Trial) -> float:
    apart = sum(
        weight
        for name, weight in _WEIGHTS.items()
        if getattr(strategy, name) != getattr(trial, name)
    )
    doublings = abs(math.log2(strategy.micro_batch_size / trial.micro_batch_size))
    return apart + _PER_DOUBLING * doublings


def _kind(of: Strategy | Trial) -> tuple[int, str, bool]:
    return of.zero_stage, of.offload, of.activation_checkpointing


def _as_large(candidate: Candidate, trial: Trial) -> bool:
    """Whether a candidate needs at least as much as a trial for which there was no room."""
    memory = candidate.memory
    return memory is not None and memory.total >= (trial.predicted_bytes or 0)
