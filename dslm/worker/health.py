"""The health of a training by its numbers: what can't be right, judged step by step.

Values in, values out: the loss of the global batch, the norm of its gradient, its learnt tokens
and the loss scale of each step. Every rank gets the same numbers, so every rank judges the same.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from statistics import median

SEVERAL = 5  # steps in a row that a number must be 0 or constant
_LONG = 20  # steps in a row without a finite gradient in fp16, which looks for its loss scale
_RECENT = 64  # losses that say what is usual
_FEWEST = 16
_FAR = 10.0  # median deviations above the median, from which a loss is a jump
_LEAST_JUMP = 0.25  # of the median: a spread of next to nothing makes no jump of a hair
_FEWEST_CLASSES = 100
_WORSE, _BETTER = 1.1, 0.6  # than guessing
_STEADY = 1e-9  # a spread below this share of the numbers is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What is known of one step, the same on all ranks; None: not known."""

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    learnt: int | None = None  # tokens, or samples, that the loss is of
    loss_scale: float | None = None
    least_scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """Something that can't be right, or is far from usual, and since when."""

    kind: str
    message: str
    since: int  # the first step that it is true of
    spike: bool = False  # far from usual: no proof of anything


def judge_first(loss: float | None, classes: int, *, pretrained: bool) -> Trouble | None:
    """Judge the loss of the first step against that of guessing, ln of the number of classes."""
    if loss is None or not math.isfinite(loss) or classes < _FEWEST_CLASSES:
        return None
    guessing = math.log(classes)
    said = f"the first loss is {loss:.3f}, and guessing among {classes:,} gives {guessing:.3f}"
    if pretrained and loss > guessing * _WORSE:
        return Trouble(
            kind="first loss",
            message=f"{said}: this pretrained model knows nothing of this data",
            since=1,
            spike=True,
        )
    if not pretrained and loss < guessing * _BETTER:
        return Trouble(
            kind="first loss",
            message=f"{said}: a model from scratch can't know that; do the inputs show the labels?",
            since=1,
            spike=True,
        )
    return None


class Health:
    """Remembers the last numbers and judges new ones."""

    def __init__(self, *, fp16: bool = False, rewarded: bool = False) -> None:
        self._fp16 = fp16
        self._rewarded = rewarded  # a loss around 0 that says nothing of how good the model is
        self._losses: deque[float] = deque(maxlen=_RECENT)
        self._runs: dict[str, tuple[float, int, int]] = {}  # value, how often, since which step
        self._infinite = 0

    def judge(self, numbers: Numbers) -> Trouble | None:
        """Judge a step; the worst that is wrong with it, None if nothing is."""
        return (
            self._nothing_learnt(numbers)
            or self._not_finite(numbers)
            or (self._no_difference(numbers) if self._rewarded else self._at_odds(numbers))
            or self._scale(numbers)
        )

    def _at_odds(self, numbers: Numbers) -> Trouble | None:
        return (
            self._stuck("loss", numbers.loss, numbers.step)
            or self._stuck("gradient norm", numbers.grad_norm, numbers.step)
            or self._jump(numbers)
        )

    def _no_difference(self, numbers: Numbers) -> Trouble | None:
        """Find steps that teach nothing, since rewards don't tell answers apart."""
        found = self._stuck("gradient norm", numbers.grad_norm, numbers.step)
        if found is None or numbers.grad_norm:
            return None
        return replace(
            found,
            spike=True,
            message=f"{found.message}: all answers to a prompt get the same reward, so that "
            "nothing is learnt",
        )

    def _nothing_learnt(self, numbers: Numbers) -> Trouble | None:
        if numbers.learnt != 0:
            return None
        return Trouble(
            kind="nothing learnt",
            message=f"no token of the batch of step {numbers.step} is learnt: all its labels are "
            "ignored",
            since=numbers.step,
        )

    def _not_finite(self, numbers: Numbers) -> Trouble | None:
        bad = [
            name
            for name, value in (("loss", numbers.loss), ("gradient norm", numbers.grad_norm))
            if value is not None and not math.isfinite(value)
        ]
        self._infinite = self._infinite + 1 if bad else 0
        # in fp16 a step that overflows is skipped, and the loss scale halved
        if not bad or (self._fp16 and self._infinite < _LONG):
            return None
        since = numbers.step - self._infinite + 1
        return Trouble(
            kind="not finite",
            message=f"the {' and the '.join(bad)} {'are' if len(bad) > 1 else 'is'} not finite "
            f"since step {since}",
            since=since,
        )

    def _stuck(self, name: str, value: float | None, step: int) -> Trouble | None:
        if value is None or not math.isfinite(value):
            self._runs.pop(name, None)
            return None
        before, count, since = self._runs.get(name, (math.nan, 0, step))
        same = before == value or abs(before - value) <= _STEADY * abs(value)
        count, since = (count + 1, since) if same else (1, step)
        self._runs[name] = (value, count, since)
        if count < SEVERAL:
            return None
        said = "exactly 0" if value == 0 else f"exactly {value:.6g} again and again"
        return Trouble(
            kind="constant", message=f"the {name} is {said} since step {since}", since=since
        )

    def _scale(self, numbers: Numbers) -> Trouble | None:
        if numbers.loss_scale is None or numbers.loss_scale > numbers.least_scale:
            self._runs.pop("scale", None)
            return None
        _, count, since = self._runs.get("scale", (0.0, 0, numbers.step))
        self._runs["scale"] = (0.0, count + 1, since)
        if count + 1 < SEVERAL:
            return None
        return Trouble(
            kind="loss scale",
            message=f"the loss scale of fp16 is at its minimum, {numbers.least_scale:g}, since "
            f"step {since}: gradients overflow whatever it is",
            since=since,
        )

    def _jump(self, numbers: Numbers) -> Trouble | None:
        loss = numbers.loss
        if loss is None or not math.isfinite(loss):
            return None
        usual = list(self._losses)
        self._losses.append(loss)
        if len(usual) < _FEWEST:
            return None
        middle = median(usual)
        spread = median(abs(each - middle) for each in usual)
        if loss <= middle + max(_FAR * spread, _LEAST_JUMP * abs(middle)):
            return None
        self._losses.pop()  # what is far from usual doesn't become usual
        return Trouble(
            kind="jump",
            message=f"the loss jumped to {loss:.4g} in step {numbers.step}; the last ones were "
            f"about {middle:.4g}",
            since=numbers.step,
            spike=True,
        )
