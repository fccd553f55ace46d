"""Answers that were given while training, with what they were worth: rollouts.jsonl of a run.

A line of JSON an answer. The file is bounded: once it is full it becomes `rollouts.1.jsonl`, and
the one that had this name before is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dslm.run.directory import RunDirectory

_MOST_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One answer to a prompt; both are texts, or what messages say."""

    attempt: int
    step: int
    prompt: str
    answer: str
    reference: str | None
    reward: float | None
    rewards: Mapping[str, float | None]
    advantage: float
    tokens: int


def append_rollouts(run: RunDirectory, rollouts: Iterable[Rollout]) -> None:
    """Write answers down; called by one rank."""
    file = run.rollouts
    if file.is_file() and file.stat().st_size > _MOST_BYTES:
        file.replace(_older(file))
    names = Rollout.__slots__
    with file.open("a", encoding="utf-8") as stream:
        for one in rollouts:
            line = {name: getattr(one, name) for name in names}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def last_rollouts(run: RunDirectory, count: int) -> list[Rollout]:
    """Return the answers that were written last, in order; a line that was cut off is left out."""
    lines: list[str] = []
    for file in (_older(run.rollouts), run.rollouts):
        with suppress(OSError):
            lines += file.read_text(encoding="utf-8").splitlines()
    found = [one for line in lines[-count - 1 :] if (one := _read(line)) is not None]
    return found[-count:]


def _older(file: Path) -> Path:
    return file.with_name(f"{file.stem}.1{file.suffix}")


def _read(line: str) -> Rollout | None:
    """One line; None for one that was cut off."""
    try:
        return Rollout(**json.loads(line))
    except (ValueError, TypeError):
        return None
