"""What the screen shows of a run: every number whole, at any width of the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dslm.cli.screens.progress import RunScreen
from dslm.run import events

EVENTS = [
    events.Phase(time=100.0, attempt=1, phase="joining", detail="2 ranks"),
    events.Start(
        time=110.0, attempt=1, steps=200, world_size=2, parameters=10**9, trained_parameters=10**9,
        flops_per_token=6e9, peak_flops=1e14,
    ),
    events.Step(time=112.0, attempt=1, step=1, loss=9.5),
    events.Step(
        time=211.0, attempt=1, step=100, loss=2.34567, learning_rate=1.5e-4,
        tokens_per_second=12345.0, samples_per_second=12.3, memory_peak_bytes=3 * 2**30,
    ),
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
        events.Phase(time=1, attempt=1, phase="restarting", detail=said),
        events.Error(time=2, attempt=1, message=said),
        events.Restart(time=3, attempt=2, step=1, hosts=("w[1]",), left_out=(said,)),
    ):
        screen.event(event)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count(said) == 3
    assert "w[1]" in shown
    RunScreen(console, name="a[/b]", live=False)


def _shown(story: list[events.Event], **options: bool) -> str:
    console = Console(width=200, file=io.StringIO(), no_color=True)
    screen = RunScreen(console, name="r", live=False, clock=lambda: 9e8, **options)
    for event in story:
        screen.event(event)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_of_adapters_it_is_said_what_is_trained() -> None:
    start = events.Start(
        time=1, attempt=1, steps=9, parameters=137 * 10**6, trained_parameters=2_400_000
    )
    assert "137M parameters, of which 2.4M are trained (1.8%), 1 rank" in _shown([start])


def test_a_checkpoint_says_that_saving_goes_on_beside_training() -> None:
    saved = events.CheckpointSaved(time=1, attempt=1, step=300, seconds=0.025, complete_seconds=1.5)
    said = "checkpoint step 300: training paused for 25 ms, complete after 1.5 s"
    assert said in _shown([saved])


def test_a_run_that_is_over_shows_the_times_of_its_events() -> None:
    """Also of one that was resumed days later: the days are no training."""
    story = [
        events.Start(time=1000, attempt=1, steps=9),
        events.Step(time=1060, attempt=1, step=3),
        events.End(time=1070, attempt=1, status="stopped", step=3),
        events.Start(time=900_000, attempt=2, steps=9),
        events.Step(time=900_030, attempt=2, step=5),
    ]
    shown = _shown(story, follows=False)
    assert "step 3/9" in shown
    assert [line.rpartition("elapsed ")[2] for line in shown.splitlines() if "elapsed" in line] == [
        "0:01:00",
        "0:01:40",
    ]
