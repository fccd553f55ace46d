"""What the screen shows of a run: every number whole, at any width of the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dslm.cli.screens.progress import RunScreen

EVENTS = [
    {"event": "phase", "time": 100.0, "phase": "joining", "detail": "2 ranks"},
    {
        "event": "start", "time": 110.0, "steps": 200, "world_size": 2, "parameters": 10**9,
        "flops_per_token": 6e9, "peak_flops": 1e14,
    },
    {"event": "step", "time": 112.0, "step": 1, "loss": 9.5},
    {
        "event": "step", "time": 211.0, "step": 100, "loss": 2.34567, "learning_rate": 1.5e-4,
        "tokens_per_second": 12345.0, "samples_per_second": 12.3, "memory_peak_bytes": 3 * 2**30,
    },
]  # fmt: skip
NUMBERS = (
    "100/200", "loss 2.3457", "lr 1.50e-04", "tokens/s 12.3k", "samples/s 12.3", "MFU 37.0%",
    "memory 3.0 GiB", "elapsed 0:01:51", "remaining 0:01:40",
)  # fmt: skip


def _screen(width: int, *, live: bool) -> tuple[RunScreen, Console]:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    screen = RunScreen(console, name="r", live=live, clock=lambda: 211.0)
    for event in EVENTS:
        screen.event(event)
    return screen, console


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_live_screen_cuts_no_number(width: int) -> None:
    screen, console = _screen(width, live=True)
    console.print(screen)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in NUMBERS:
        assert words in shown, shown


def test_without_a_terminal_a_step_is_one_plain_line() -> None:
    _, console = _screen(80, live=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "joining: 2 ranks" in lines[0]
    assert "1B parameters, 2 ranks, 200 steps" in lines[1]
    assert all(words in lines[-1] for words in ("step 100/200", *NUMBERS[1:])), lines
    assert "\x1b" not in "".join(lines)


def test_what_others_said_is_shown_as_it_is() -> None:
    """gloo writes `[/__w/…/pair.cc:553]`, which Rich would take for a closing tag."""
    said = "[/__w/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    screen, console = _screen(200, live=False)
    for event in (
        {"event": "phase", "phase": "restarting", "detail": said},
        {"event": "error", "message": said},
        {"event": "restart", "step": 1, "world_size": 1, "hosts": ["w[1]"], "left_out": [said]},
    ):
        screen.event(event)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count(said) == 3
    assert "w[1]" in shown
    RunScreen(console, name="a[/b]", live=False)
