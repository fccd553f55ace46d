"""The figures on the page of layouts are those of the planner."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.layout_figures import table

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
_OFF = 0.02  # a planner that is corrected by more than this makes the page old


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| llama-3.1")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _number(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


def test_the_figures_for_8_and_70_billion_are_planned() -> None:
    shown, planned = _cells(PAGE.read_text()), _cells(table())
    assert len(shown) == len(planned) == 12
    for one, other in zip(shown, planned, strict=True):
        assert one[:4] + one[6:] == other[:4] + other[6:]
        for mine, true in zip(one[4:6], other[4:6], strict=True):
            assert _number(mine) == pytest.approx(_number(true), rel=_OFF)
