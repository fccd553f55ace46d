"""Numbers as people read and write them."""

from __future__ import annotations

import math

import pytest

from dslm.units import render_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (0.0174, "17 ms"), (0.0994, "99 ms"), (0.0996, "0.1 s"), (4.24, "4.2 s"),
        (59.6, "0:01:00"), (3725, "1:02:05"), (math.inf, "-"),
    ],
)  # fmt: skip
def test_seconds(seconds: float, text: str) -> None:
    assert render_seconds(seconds) == text
