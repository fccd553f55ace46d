"""Random draws of tokens that don't depend on who makes them.

Each answer to each prompt has noise of its own, a pure function of seed, prompt, answer, position
and token: whatever the ranks, the batches and the interruptions are, the same model draws the same.
The largest score plus Gumbel noise is a draw from the softmax of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 53  # of a uniform number


class Drawn(LogitsProcessor):  # type: ignore[misc]
    """Adds the noise of each row's answer to its scores; the last of the processors."""

    def __init__(self, keys: torch.Tensor) -> None:
        self._keys = keys  # (B,) int64
        self._position = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._position += 1
        noise = gumbel(self._keys.to(scores.device), self._position, scores.shape[-1])
        return scores.double() + noise


def keys_of(seed: int, answers: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return a key for each answer: of which prompt (its place), and the how-manieth."""
    table = torch.tensor(answers, dtype=torch.int64).reshape(-1, 2)
    key = _mixed(torch.full((len(table),), seed, dtype=torch.int64) + _signed(_GOLDEN))
    for column in table.unbind(1):
        key = _mixed(key + column * _signed(_GOLDEN))
    return key


def gumbel(keys: torch.Tensor, position: int, entries: int) -> torch.Tensor:
    """Gumbel noise, (B, entries), float64, of answers at a position."""
    tokens = torch.arange(entries, device=keys.device, dtype=torch.int64)
    row = _mixed(keys + _signed(position * _GOLDEN))
    bits = _mixed(row[:, None] + tokens[None] * _signed(_FIRST))
    uniform = (_shifted(bits, 64 - _BITS).double() + 0.5) * 2.0**-_BITS
    return -torch.log(-torch.log(uniform))


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), modulo 2^64."""
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, count: int) -> torch.Tensor:
    """Shift to the right with zeros, which torch has for no signed numbers."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    number %= 1 << 64
    return number - (1 << 64) if number >> 63 else number
