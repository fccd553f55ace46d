"""Rewarded answers are shown while a run is trained and after it; a terminal obeys none."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from dslm.cli.screens.answers import harmless
from dslm.cli.screens.progress import RunScreen
from dslm.cli.screens.runs import run_page
from dslm.run import events
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from dslm.run.rollouts import Rollout, append_rollouts
from dslm.run.summary import summary_of

HOSTILE = "4\x1b[2J\n\x07 done"
METRICS = {"reward": 0.25, "completions/mean_length": 3.0}


def test_an_answer_on_a_terminal_keeps_its_lines_and_moves_no_cursor() -> None:
    assert harmless("a\tb\nc\r\x1b[2J\x07") == "a\tb\nc" + "\N{REPLACEMENT CHARACTER}[2J".join(
        ["\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}"]
    )


def test_reward_length_and_an_answer_are_said_of_a_run_in_progress() -> None:
    stream = io.StringIO()
    with RunScreen(Console(file=stream, width=200), name="run", live=False) as screen:
        screen.event(events.Start(time=1, attempt=1, steps=10))
        screen.event(
            events.Answered(time=2, attempt=1, step=1, prompt="2+2=", answer=HOSTILE, reward=1.0)
        )
        screen.event(events.Step(time=3, attempt=1, step=1, loss=0.0, metrics=METRICS))
    said = stream.getvalue()
    assert "2+2= → 4\N{REPLACEMENT CHARACTER}[2J" in said
    assert "(reward 1.00)" in said
    assert "reward 0.250" in said
    assert "length 3" in said
    assert not {"\x1b", "\x07"} & set(said)


def test_the_page_of_a_run_has_the_rewards_curve_and_the_last_answers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.manifest.write_text(json.dumps({"format": 1}))
    for step in range(1, 9):
        metrics = {**METRICS, "reward": step / 10}
        made = events.Step(time=step, attempt=1, step=step, loss=0.0, metrics=metrics)
        events.write_event(run.events, made)
    append_rollouts(run, [
        Rollout(
            attempt=1, step=8, prompt="2+2=", answer=HOSTILE, reference="4", reward=0.8,
            rewards={"number_match": 0.8}, advantage=0.1, tokens=2,
        )
    ])  # fmt: skip
    stream = io.StringIO()
    history = read_history(run)
    for part in run_page(history, summary_of(history), plain=True):
        Console(file=stream, width=120).print(part)
    said = stream.getvalue()
    assert "reward by step" in said
    assert "0.8000" in said
    assert "2+2=" in said
    assert "\x1b" not in said
