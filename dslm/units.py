"""Bytes, seconds and counts, to and from people's text, and what divides a count.

Nothing else formats a size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNT_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def render_bytes(size: float) -> str:
    """`1536` → `1.5 KiB`."""
    value = float(size)
    for unit in _BYTE_UNITS:
        if abs(value) < 1024 or unit == _BYTE_UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def render_seconds(seconds: float) -> str:
    """`3725` → `1:02:05`; under ten seconds `4.2 s`, under a tenth `17 ms`."""
    if not math.isfinite(seconds):
        return "-"
    if 0.0005 <= seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def render_count(count: float) -> str:
    """`1235814400` → `1.24B`."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # from 999.5 on three digits round up to the next unit's 1
        if abs(count) >= 0.9995 * factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:.3g}"


def number_of(count: int, noun: str) -> str:
    """`1, "rank"` → `1 rank`; `2, "rank"` → `2 ranks`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def parse_count(text: str) -> int:
    """Parse a count as people write it: `7.5B`, `128b`, `1e12`, `124M`.

    Raises:
        ValueError: the text is no positive number.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmbgt]?)\s*", text.lower())
    if not match:
        raise ValueError(f"`{text}` is not a count such as `7.5B`, `350M` or `1e12`")
    value = float(match[1]) * _COUNT_UNITS[match[2]]
    if not math.isfinite(value) or value < 1:
        raise ValueError(f"`{text}` is not a positive count")
    return round(value)


def listed(words: Iterable[str]) -> str:
    """Name several things: `a, b and c`."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def divisors(number: int, *, least: int = 1) -> list[int]:
    """Return what divides a number evenly, from `least` on."""
    return [each for each in range(least, number + 1) if number % each == 0]
