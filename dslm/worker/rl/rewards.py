"""Rewards of answers: functions of the user's own, built-in ones, and what happens when one fails.

A function is called as TRL calls it, `function(prompts=…, completions=…, **columns)`, and returns a
number for each answer (None: it can't judge it). It has a time limit, and what goes wrong in it
ends the run with its name.
"""

from __future__ import annotations

import importlib.util
import math
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType
from typing import Any

from dslm.errors import InputError, RunFailed, Where
from dslm.files import expanded
from dslm.recipe.rewarding import Reward
from dslm.units import number_of

Answers = list[Any]  # texts, or lists of messages
Function = Callable[..., Sequence[float | None]]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_AGAIN_SECONDS = 1.0  # a function that swallows the interruption is interrupted again


class _TooLong(BaseException):
    """No Exception: `except Exception` in a reward must not swallow it."""


def text_of(answer: Any) -> str:
    """The text of an answer: itself, or what its messages say."""
    if isinstance(answer, str):
        return answer
    return "".join(str(message.get("content") or "") for message in answer)


def exact_match(completions: Answers, answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the answer is the reference, white space around them left out; else 0."""
    return _compared(completions, answer, lambda text: text.strip())


def number_match(completions: Answers, answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the last number of the answer is the last one of the reference; else 0."""
    return _compared(completions, answer, _last_number)


def _compared(
    completions: Answers, answer: Sequence[Any], part: Callable[[str], object]
) -> list[float | None]:
    """Compare a part of each answer with that of its reference; None where there is none."""
    pairs = [(text_of(made), wanted) for made, wanted in zip(completions, answer, strict=True)]
    return [
        None
        if wanted is None
        else float(part(made) is not None and part(made) == part(str(wanted)))
        for made, wanted in pairs
    ]


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    try:
        return Decimal(numbers[-1].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None


def format_of(pattern: str) -> Function:
    """1 where a regular expression is found in the answer (a dot is any character); else 0."""
    compiled = re.compile(pattern, re.DOTALL)

    def format_match(completions: Answers, **_: Any) -> list[float]:
        return [float(compiled.search(text_of(made)) is not None) for made in completions]

    return format_match


def length_of(tokens: int) -> Function:
    """1 up to a number of tokens, then less: 0 from twice as many on."""

    def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [min(1.0, max(0.0, 2 - len(ids) / tokens)) for ids in completion_ids]

    return length


def reward_function(reward: Reward) -> Function:
    """Return the function of a reward that is no model, guarded.

    Raises:
        InputError: the file can't be imported, or has no such function.
    """
    name, place = str(reward.function), ""
    if name == "format":
        function = format_of(str(reward.pattern))
    elif name == "length":
        function = length_of(int(reward.tokens or 0))
    elif name in _BUILT_IN:
        function = _BUILT_IN[name]
    else:
        place, _, name = name.rpartition(":")
        function = _imported(place, name)
    return _guarded(function, name, place, reward.timeout)


_BUILT_IN: dict[str, Function] = {"exact_match": exact_match, "number_match": number_match}


def _imported(place: str, name: str) -> Function:
    file = expanded(place)
    where = Where(file=place, key="rewards")
    spec = importlib.util.spec_from_file_location(f"rewards_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError("is no Python file", where=where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.absolute().parent))  # what stands beside it can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as failure:  # it is a program: it raises anything
        raise InputError(
            f"can't be imported: {type(failure).__name__}: {failure}", where=where
        ) from failure
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"has no function `{name}`", where=where)
    made: Function = function
    return made


def _guarded(function: Function, name: str, place: str, seconds: float) -> Function:
    """A function with a time limit, whose failures and answers are said to be its own."""
    said = f"the reward `{name}`" + (f" of {place}" if place else "")
    where = Where(file=place or None, key="rewards")

    def reward(**given: Any) -> list[float | None]:
        count = len(given["completions"])
        try:
            with _limit(seconds):
                found = list(function(**given))
        except _TooLong:
            raise RunFailed(
                f"{said} took longer than {seconds:g} s for {number_of(count, 'answer')}",
                where=where,
                hint="`rewards.timeout` allows more",
            ) from None  # fmt: skip
        except Exception as failure:  # it is a program: it raises anything
            line = _line(failure, place)
            raise RunFailed(
                f"{said} raised {type(failure).__name__}: {failure}"
                + (f" (line {line})" if line else ""),
                where=where,
            ) from failure
        wrong = next((each for each in found if not _is_reward(each)), 0.0)
        if len(found) != count or not _is_reward(wrong):
            what = f"{wrong!r} for an answer" if not _is_reward(wrong) else f"{len(found)} numbers"
            raise RunFailed(
                f"{said} returned {what}: it must return a finite number, or None, for each of "
                f"{number_of(count, 'answer')}",
                where=where,
            )
        return found

    reward.__name__ = name
    return reward


def _is_reward(value: object) -> bool:
    if value is None:
        return True
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _line(failure: BaseException, place: str) -> int | None:
    """The line of the user's file that failed."""
    stack = traceback.extract_tb(failure.__traceback__)
    wanted = Path(place).name
    return next((f.lineno for f in reversed(stack) if Path(f.filename).name == wanted), None)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Interrupt what runs longer, in the main thread: regular expressions and sleep too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
