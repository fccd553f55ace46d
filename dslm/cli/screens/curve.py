"""A small curve in characters: points in, lines of text out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_BASE = 0x2800  # of Unicode's braille patterns: two by four dots a character
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column


def curve(
    points: Sequence[tuple[float, float]],
    *,
    width: int = 60,
    height: int = 6,
    plain: bool = False,
) -> list[str]:
    """Lines that show y over x, with the range of both; none for fewer than two points.

    Args:
        points: x and y, by x.
        width: characters of the curve itself.
        height: its lines.
        plain: ASCII only.
    """
    if len(points) < 2:
        return []
    columns, rows = (1, 1) if plain else (2, 4)
    across, down = width * columns, height * rows
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    cells = [[0] * width for _ in range(height)]
    for column in range(across):
        y = _between(points, first + (last - first) * column / (across - 1))
        row = round((high - y) / (high - low) * (down - 1)) if high > low else down - 1
        cells[row // rows][column // columns] |= _DOTS[row % rows][column % columns]
    labels = [f"{high:.4f}", *[""] * (height - 2), f"{low:.4f}"]
    margin = max(map(len, labels))
    lines = [
        f"{label:>{margin}} {_line(row, plain=plain)}"
        for label, row in zip(labels, cells, strict=True)
    ]
    ends = f"{first:g}".ljust(width - len(f"{last:g}")) + f"{last:g}"
    return [*lines, f"{'':>{margin}} {ends}"]


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x, on the straight line between the points around it."""
    after = min(max(bisect_left(points, x, key=lambda point: point[0]), 1), len(points) - 1)
    (left, low), (right, high) = points[after - 1], points[after]
    share = (x - left) / (right - left) if right > left else 1.0
    return low + (high - low) * min(1.0, max(0.0, share))


def _line(row: Sequence[int], *, plain: bool) -> str:
    if plain:
        return "".join("*" if cell else " " for cell in row).rstrip()
    return "".join(chr(_BASE + cell) if cell else " " for cell in row).rstrip()
