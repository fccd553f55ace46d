"""What happened in a run, through restarts, whatever lies in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.run import events
from dslm.run.directory import RunDirectory
from dslm.run.history import Status, read_history
from dslm.run.summary import summarize

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"


def run_of(folder: Path, *story: events.Event) -> RunDirectory:
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    for event in story:
        events.write_event(run.events, event)
    return run


START = events.Start(time=100, attempt=1, steps=8)


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (events.Error(time=101, attempt=1, again=True), Status.UNFINISHED),
        (events.Error(time=101, attempt=1), Status.FAILED),
        (events.End(time=101, attempt=1), Status.DONE),
        (events.End(time=101, attempt=1, status="stopped"), Status.STOPPED),
        (events.End(time=101, attempt=1, status="killed"), Status.KILLED),
        (events.End(time=101, attempt=1, status="paused by a later version"), Status.UNFINISHED),
        (events.Step(time=101, attempt=1, step=3), Status.UNFINISHED),
        (events.Other(time=1, attempt=1, event="new", content={}), Status.UNFINISHED),
    ],
)
def test_the_last_event_that_says_how_it_stands_counts(
    tmp_path: Path, last: events.Event, status: Status
) -> None:
    ended = events.End(time=99, attempt=1)
    assert read_history(run_of(tmp_path, ended, START, last)).status is status


def test_each_step_counts_once_as_the_attempt_that_kept_it_has_it(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        START,
        events.Step(time=101, attempt=1, step=2, loss=3.0, step_seconds=0.5),
        events.Eval(time=101, attempt=1, step=2, loss=3.1),
        events.Step(time=102, attempt=1, step=4, loss=2.0, step_seconds=0.5),
        events.Eval(time=102, attempt=1, step=4, loss=2.1),
        events.Error(time=103, attempt=1, message="lost", again=True),
        events.Restart(time=104, attempt=2, step=2, lost_steps=2, lost_seconds=3.0),
        events.Resume(time=105, attempt=2, step=2),
        events.Start(time=105, attempt=2, steps=8),
        events.Step(time=106, attempt=2, step=3, loss=2.5, step_seconds=1.0),
        events.End(time=107, attempt=2, status="stopped", step=3),
    )
    history = read_history(run)
    assert [(step.step, step.loss) for step in history.steps] == [(2, 3.0), (3, 2.5)]
    assert [evaluation.step for evaluation in history.evaluations] == [2]
    assert history.step == 3
    assert history.attempts == 2
    assert [again.lost_steps for again in history.restarts] == [2]
    assert history.goodput == pytest.approx((4 * 0.5 - 0.5 + 0.5) / 7, abs=1e-4)
    assert history.last(events.Step) == history.steps[-1]


def test_a_run_that_begins_again_without_a_checkpoint_keeps_none_of_the_old_steps(
    tmp_path: Path,
) -> None:
    run = run_of(
        tmp_path,
        START,
        events.Step(time=101, attempt=1, step=4, loss=2.0),
        events.Start(time=105, attempt=2, steps=8),
        events.Step(time=106, attempt=2, step=1, loss=3.5),
    )
    assert [(step.step, step.loss) for step in read_history(run).steps] == [(1, 3.5)]


@pytest.mark.parametrize(
    ("again", "took"),
    [
        ([events.Restart(time=160, attempt=2, step=2)], 65),  # by itself, after a pause
        ([events.TakenOver(time=160, attempt=1)], 15),  # by somebody, after the owner had died
        ([events.Phase(time=160, attempt=2, phase="resuming")], 15),  # by somebody
        ([events.TakenOver(time=150, attempt=1), events.Restart(time=160, attempt=2)], 25),
    ],
)
def test_the_time_when_nobody_trained_is_not_counted(
    tmp_path: Path, again: list[events.Event], took: float
) -> None:
    run = run_of(
        tmp_path,
        START,
        events.Step(time=110, attempt=1, step=2, step_seconds=5.0),
        *again,
        events.Resume(time=161, attempt=2, step=2),
        events.Start(time=161, attempt=2, steps=8),
        events.End(time=165, attempt=2, step=8),
    )
    history = read_history(run)
    assert history.seconds == took
    assert history.goodput == pytest.approx(10 / took, abs=1e-4)


def test_a_run_of_version_0_1_tells_its_whole_story() -> None:
    done = read_history(RunDirectory(FROZEN / "done"))
    assert (done.status, done.step, done.attempts) == (Status.DONE, 120, 1)
    assert [step.step for step in done.steps] == [1, *range(5, 121, 5)]
    assert [evaluation.step for evaluation in done.evaluations] == [40, 80, 120]
    assert done.evaluations[-1].metrics["hit_rate@10"] == 1.0
    stopped = summarize(RunDirectory(FROZEN / "stopped"))
    assert (stopped.status, stopped.step, stopped.steps, stopped.attempts) == (
        "stopped",
        56,
        120,
        2,
    )
    assert stopped.restarts[0].cause == "the process was killed from outside"
    assert stopped.eval_loss == pytest.approx(2.851434)
    assert stopped.parameters == 2864
    assert not done.problems
    assert not stopped.problems


def test_what_can_not_be_read_is_counted_and_named(tmp_path: Path) -> None:
    run = run_of(tmp_path, START)
    with run.events.open("ab") as stream:
        stream.write(b"\0\0\0\n{}\n5\n")
    events.write_event(run.events, events.Step(time=101, attempt=1, step=2, loss=1.5))
    run.manifest.write_text("not JSON")
    history = read_history(run)
    assert [step.loss for step in history.steps] == [1.5]
    manifest, lines = history.problems
    assert "manifest.json" in manifest
    assert "3 lines can't be read; line 2: no JSON" in lines
