"""The screen of a run in progress: a live Rich panel, or plain lines without a terminal.

Events in, screen out. Knows the events, nothing of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from dslm.cli.screens.answers import in_a_line
from dslm.cli.screens.runs import trained_share
from dslm.run import events
from dslm.units import number_of, render_bytes, render_count, render_seconds

# of an evaluation: how much was evaluated, which is no metric
_AMOUNTS = frozenset({"tokens", "samples", "sequences", "prompts"})
_OF_ANSWERS = ("reward", "completions/mean_length")  # metrics of a step of RL
_PROMPT, _ANSWER = 60, 120  # letters of each that are shown


class RunScreen:
    """Shows the events of a run; a context manager, so that the terminal is always restored."""

    def __init__(
        self,
        console: Console,
        *,
        name: str,
        live: bool | None = None,
        clock: Callable[[], float] = time.time,
        follows: bool = True,
    ) -> None:
        """A screen.

        Args:
            console: where it is.
            name: of the run.
            live: whether it changes in place; by default if the console is a terminal.
            clock: Unix seconds.
            follows: whether the run is in progress; if not, its events give the time.
        """
        self._console = console
        self._live_wanted = console.is_terminal if live is None else live
        self._clock = clock
        self._follows = follows
        self._now: float | None = clock() if follows else None  # of the last event
        self._elapsed = 0.0  # seconds up to it, without the time between an end and a resumption
        self._ended = False
        self._phase = "starting"
        self._answer = ""
        self._start: events.Start | None = None
        self._step: events.Step | None = None
        self._first_step: events.Step | None = None  # of this attempt
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task(escape(name), total=None)
        self._live: Live | None = None

    def __enter__(self) -> RunScreen:
        if self._live_wanted:
            self._live = Live(
                self, console=self._console, refresh_per_second=4, redirect_stderr=False
            )
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def __rich__(self) -> Group:
        parts: list[RenderableType] = [self._progress, self._numbers()]
        if self._answer:
            parts.append(Text.assemble(("answer ", "dim"), self._answer, overflow="ellipsis"))
        return Group(*parts)

    def note(self, text: str | Text) -> None:
        """A line that stays on the screen, as it is: what others said may look like markup."""
        self._console.print(text, soft_wrap=True, markup=False)

    def label(self, label: str, text: str, style: str = "bold") -> None:
        """A line that stays on the screen, after a word that says what it is about."""
        self.note(Text.assemble((label, style), f" {text}"))

    def run_made(self, run: Path) -> None:
        """Take in where the run is."""
        self.label("run", str(run))

    def event(self, event: events.Event) -> None:
        """Take one event in."""
        if self._now is not None and not self._ended:
            self._elapsed += max(0.0, event.time - self._now)
        self._now, self._ended = event.time, False
        match event:
            case events.Phase():
                self._on_phase(event)
            case events.Start():
                self._on_start(event)
            case events.Step():
                self._on_step(event)
            case events.Eval():
                self._on_eval(event)
            case events.CheckpointSaved():
                self._on_checkpoint(event)
            case events.Answered():
                self._on_answer(event)
            case events.Restart():
                self._on_restart(event)
            case events.Accuracy():
                self._on_accuracy(event)
            case _:
                self._on_word(event)

    def _on_word(self, event: events.Event) -> None:
        """An event that is shown as a line."""
        match event:
            case events.Resume():
                self.label("resumed", f"from step {event.step}")
            case events.Estimate():
                self.label("estimate", _corrected(event))
            case events.TakenOver():
                self.label("taken over", f"from {event.owner}, which has died", "bold yellow")
            case events.Error():
                self._ended = not event.again
                self.note(Text(f"failed: {event.message}", style="red"))
            case events.Stall():
                self.note(Text(f"stalled: {event.message}", style="yellow"))
            case events.Trouble():
                self.label(
                    event.action, event.message, "red" if event.action == "stop" else "yellow"
                )
            case events.Slow():
                self.label(
                    "slow",
                    f"rank {event.rank} on {event.host} computes "
                    f"{event.ratio:.1f} times as long as the others",
                    "yellow",
                )
            case events.Stop():
                self._phase = "stopping"
                # before training has started there is nothing to wait for, and nothing to save
                when = "after this step; press Ctrl-C again to end it at once"
                when = when if self._start else "at once: nothing is trained yet"
                self.label("stopping", when, "yellow")
            case events.End():
                self._ended = True
                self._phase = event.status

    def _on_phase(self, event: events.Phase) -> None:
        self._phase = f"{event.phase}: {event.detail}" if event.detail else event.phase
        if not self._live_wanted:
            self.note(f"  {self._phase}")

    def _on_start(self, event: events.Start) -> None:
        self._start, self._first_step = event, None
        self._phase = "first step"
        self._progress.update(self._task, total=event.steps)
        ranks = number_of(event.world_size, "rank")
        steps = "? steps" if event.steps is None else number_of(event.steps, "step")
        count, share = "?", ""
        if event.parameters is not None:
            count = render_count(event.parameters)
            share = trained_share(event.parameters, event.trained_parameters)
        self.label(
            "training",
            f"{count} parameters{share}, {ranks}, {steps}",
        )

    def _on_restart(self, event: events.Restart) -> None:
        self._start = None
        lost = f", {number_of(event.lost_steps, 'step')} lost" if event.lost_steps else ""
        self.label(
            "again",
            f"from step {event.step} with {number_of(event.world_size, 'rank')} on "
            f"{', '.join(event.hosts)}"
            f"{lost}",
            "bold yellow",
        )
        for reason in event.left_out:
            self.note(f"  left out: {reason}")

    def _on_step(self, event: events.Step) -> None:
        self._first_step = self._first_step or event
        self._step = event
        self._phase = "training"
        self._progress.update(self._task, completed=event.step)
        if not self._live_wanted:
            self.note("  " + "  ".join(f"{k} {v}" for k, v in self._cells()))

    def _on_accuracy(self, event: events.Accuracy) -> None:
        if event.difference is None:
            return
        parts = [
            f"memory {render_bytes(event.predicted_bytes or 0)} planned, "
            f"{render_bytes(event.measured_bytes or 0)} measured ({event.difference:+.1%})"
        ]
        if event.step_difference is not None:
            parts.append(
                f"step {render_seconds(event.predicted_step_seconds or 0)} planned, "
                f"{render_seconds(event.measured_step_seconds or 0)} measured "
                f"({event.step_difference:+.1%})"
            )
        self.label("plan", "; ".join(parts))

    def _on_eval(self, event: events.Eval) -> None:
        shown = {"loss": event.loss, **event.metrics}
        parts = [
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in shown.items()
            if name not in _AMOUNTS and value is not None
        ]
        self.label("eval", f"step {event.step}: " + ", ".join(parts))

    def _on_answer(self, event: events.Answered) -> None:
        """The newest answer; on a screen that changes in place it takes the last one's place."""
        worth = "" if event.reward is None else f" (reward {event.reward:.2f})"
        prompt, answer = map(in_a_line, (event.prompt, event.answer))
        self._answer = f"{prompt[-_PROMPT:]} → {answer[:_ANSWER]}{worth}"
        if not self._live_wanted:
            self.note(f"  answer  {self._answer}")

    def _on_checkpoint(self, event: events.CheckpointSaved) -> None:
        """Training stood still for a moment; the rest was done beside it."""
        parts = []
        if event.seconds is not None:
            parts.append(f"training paused for {render_seconds(event.seconds)}")
        if event.complete_seconds is not None:
            parts.append(f"complete after {render_seconds(event.complete_seconds)}")
        self.label("checkpoint", f"step {event.step}" + (f": {', '.join(parts)}" if parts else ""))

    def _seconds(self) -> float:
        """Return the seconds of the run, without the time in which no process trained."""
        running = self._follows and not self._ended
        since = self._clock() - self._now if running and self._now is not None else 0.0
        return self._elapsed + max(0.0, since)

    def _cells(self) -> list[tuple[str, str]]:
        """Name and value of each number on the screen."""
        step, start = self._step, self._start
        elapsed = ("elapsed", render_seconds(self._seconds()))
        if step is None:
            return [elapsed]
        cells: list[tuple[str, str]] = []
        if not self._live_wanted:
            steps = start.steps if start else None
            cells.append(("step", f"{step.step}/{steps or '?'}"))
        cells.append(("loss", "not finite" if step.loss is None else f"{step.loss:.4f}"))
        reward, length = (step.metrics.get(name) for name in _OF_ANSWERS)
        if reward is not None:
            cells.append(("reward", f"{reward:.3f}"))
        if length is not None:
            cells.append(("length", f"{length:.0f}"))
        if step.learning_rate is not None:
            cells.append(("lr", f"{step.learning_rate:.2e}"))
        if step.tokens_per_second:
            cells.append(("tokens/s", render_count(step.tokens_per_second)))
        if step.samples_per_second:
            cells.append(("samples/s", f"{step.samples_per_second:.1f}"))
        mfu = self._mfu(step)
        if mfu is not None:
            cells.append(("MFU", f"{mfu:.1%}"))
        if step.memory_peak_bytes:
            cells.append(("memory", render_bytes(step.memory_peak_bytes)))
        cells.append(elapsed)
        remaining = self._remaining(step)
        if remaining is not None:
            cells.append(("remaining", render_seconds(remaining)))
        return cells

    def _mfu(self, step: events.Step) -> float | None:
        start = self._start
        if start is None or not (start.flops_per_token and start.peak_flops):
            return None
        if not step.tokens_per_second:
            return None
        done = start.flops_per_token * step.tokens_per_second
        return done / (start.peak_flops * max(start.world_size, 1))

    def _remaining(self, step: events.Step) -> float | None:
        first, total = self._first_step, self._start.steps if self._start else None
        if not total or first is None or step.step <= first.step:
            return None
        per_step = (step.time - first.time) / (step.step - first.step)
        return max(0.0, (total - step.step) * per_step)

    def _numbers(self) -> Columns:
        """Phase and numbers side by side, in as many rows as the terminal's width asks for."""
        cells = [Text(self._phase, style="italic", no_wrap=True)]
        cells += [
            Text.assemble((f"{name} ", "dim"), value, no_wrap=True) for name, value in self._cells()
        ]
        return Columns(cells, padding=(0, 3))


def _corrected(event: events.Estimate) -> str:
    """The time of the run at its pace so far, beside what was planned."""
    parts = [
        f"{render_seconds(event.seconds)} in all, by the first {number_of(event.step, 'step')}"
    ]
    if event.predicted_seconds:
        off = event.seconds / event.predicted_seconds - 1
        parts.append(f"planned {render_seconds(event.predicted_seconds)} ({off:+.0%})")
    if event.cost is not None:
        parts.append(f"costs {event.cost:,.2f}")
    return ", ".join(parts)
