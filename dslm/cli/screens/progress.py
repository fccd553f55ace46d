"""What a person sees while a run goes on: a live Rich panel, or plain lines without a terminal.

Events in, screen out. Knows the fields of events, nothing of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from dslm.units import render_bytes, render_count, render_seconds

# fields of an eval event that are no metric
_NOT_METRICS = frozenset({
    "time", "event", "attempt", "step", "seconds", "tokens", "samples", "sequences",
})  # fmt: skip


class RunScreen:
    """Shows the events of a run; a context manager, so that the terminal is always restored."""

    def __init__(
        self,
        console: Console,
        *,
        name: str,
        live: bool | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._console = console
        self._live_wanted = console.is_terminal if live is None else live
        self._clock = clock
        self._started = clock()
        self._phase = "starting"
        self._start: dict[str, Any] = {}
        self._step: dict[str, Any] = {}
        self._first_step_time: float | None = None
        self._first_step = 0
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
        return Group(self._progress, self._numbers())

    def note(self, text: str | Text) -> None:
        """A line that stays on the screen, as it is: what others said may look like markup."""
        self._console.print(text, soft_wrap=True, markup=False)

    def label(self, label: str, text: str, style: str = "bold") -> None:
        """A line that stays on the screen, after a word that says what it is about."""
        self.note(Text.assemble((label, style), f" {text}"))

    def run_made(self, run: Path) -> None:
        """Take in where the run is."""
        self.label("run", str(run))

    def event(self, event: dict[str, Any]) -> None:
        """Take one event in."""
        kind = event["event"]
        self._started = min(self._started, event.get("time", self._started))
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(event)

    def _on_phase(self, event: dict[str, Any]) -> None:
        detail = event.get("detail")
        self._phase = str(event["phase"])
        if detail:
            self._phase += f": {detail}"
        if not self._live_wanted:
            self.note(f"  {self._phase}")

    def _on_start(self, event: dict[str, Any]) -> None:
        self._start = event
        self._phase = "first step"
        self._progress.update(self._task, total=event.get("steps"))
        ranks = event.get("world_size", 1)
        parameters = event.get("parameters")
        self.label(
            "training",
            f"{render_count(parameters) if parameters else '?'} parameters, "
            f"{ranks} rank{'s' if ranks != 1 else ''}, {event.get('steps')} steps",
        )

    def _on_resume(self, event: dict[str, Any]) -> None:
        self.label("resumed", f"from step {event.get('step')}")

    def _on_restart(self, event: dict[str, Any]) -> None:
        self._start = {}
        lost = f", {event['lost_steps']} steps are lost" if event.get("lost_steps") else ""
        hosts = ", ".join(event.get("hosts", ()))
        self.label(
            "again",
            f"from step {event['step']} with {event['world_size']} ranks on {hosts}{lost}",
            "bold yellow",
        )
        for reason in event.get("left_out", ()):
            self.note(f"  left out: {reason}")

    def _on_error(self, event: dict[str, Any]) -> None:
        self.note(Text(f"failed: {event.get('message', '')}", style="red"))

    def _on_stall(self, event: dict[str, Any]) -> None:
        self.note(Text(f"stalled: {event.get('message', '')}", style="yellow"))

    def _on_slow(self, event: dict[str, Any]) -> None:
        self.label(
            "slow",
            f"rank {event['rank']} on {event['host']} computes "
            f"{event['ratio']:.1f} times as long as the others",
            "yellow",
        )

    def _on_step(self, event: dict[str, Any]) -> None:
        if self._first_step_time is None:
            self._first_step_time, self._first_step = event["time"], event["step"]
        self._step = event
        self._phase = "training"
        self._progress.update(self._task, completed=event["step"])
        if not self._live_wanted:
            self.note("  " + "  ".join(f"{k} {v}" for k, v in self._cells()))

    def _on_accuracy(self, event: dict[str, Any]) -> None:
        if event.get("difference") is None:
            return
        parts = [
            f"memory {render_bytes(event['predicted_bytes'])} planned, "
            f"{render_bytes(event['measured_bytes'])} measured ({event['difference']:+.1%})"
        ]
        if event.get("step_difference") is not None:
            parts.append(
                f"step {render_seconds(event['predicted_step_seconds'])} planned, "
                f"{render_seconds(event['measured_step_seconds'])} measured "
                f"({event['step_difference']:+.1%})"
            )
        self.label("plan", "; ".join(parts))

    def _on_eval(self, event: dict[str, Any]) -> None:
        parts = [
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in event.items()
            if name not in _NOT_METRICS and value is not None
        ]
        self.label("eval", f"step {event['step']}: " + ", ".join(parts))

    def _on_checkpoint(self, event: dict[str, Any]) -> None:
        seconds = event.get("seconds")
        took = f" in {render_seconds(seconds)}" if seconds is not None else ""
        self.label("checkpoint", f"step {event['step']}{took}")

    def _on_stop(self, event: dict[str, Any]) -> None:
        self._phase = "stopping"
        when = "after this step; once more Ctrl-C ends it at once"
        # before training has started there is nothing to wait for, and nothing to save
        self.label("stopping", when if self._start else "at once: nothing is trained yet", "yellow")

    def _on_end(self, event: dict[str, Any]) -> None:
        self._phase = str(event.get("status", "done"))

    def _cells(self) -> list[tuple[str, str]]:
        """Name and value of each number on the screen."""
        step, start = self._step, self._start
        cells: list[tuple[str, str]] = []
        if not step:
            return [("elapsed", render_seconds(self._clock() - self._started))]
        if not self._live_wanted:
            cells.append(("step", f"{step['step']}/{start.get('steps', '?')}"))
        loss = step.get("loss")
        cells.append(("loss", "not finite" if loss is None else f"{loss:.4f}"))
        if step.get("learning_rate") is not None:
            cells.append(("lr", f"{step['learning_rate']:.2e}"))
        if step.get("tokens_per_second"):
            cells.append(("tokens/s", render_count(step["tokens_per_second"])))
        if step.get("samples_per_second"):
            cells.append(("samples/s", f"{step['samples_per_second']:.1f}"))
        mfu = self._mfu()
        if mfu is not None:
            cells.append(("MFU", f"{mfu:.1%}"))
        if step.get("memory_peak_bytes"):
            cells.append(("memory", render_bytes(step["memory_peak_bytes"])))
        cells.append(("elapsed", render_seconds(self._clock() - self._started)))
        remaining = self._remaining()
        if remaining is not None:
            cells.append(("remaining", render_seconds(remaining)))
        return cells

    def _mfu(self) -> float | None:
        flops = self._start.get("flops_per_token")
        rate = self._step.get("tokens_per_second")
        peak = self._start.get("peak_flops")
        if not (flops and rate and peak):
            return None
        return float(flops * rate / (peak * self._start.get("world_size", 1)))

    def _remaining(self) -> float | None:
        total = self._start.get("steps")
        done = self._step["step"] - self._first_step
        if not total or self._first_step_time is None or done <= 0:
            return None
        per_step = (self._step["time"] - self._first_step_time) / done
        return float((total - self._step["step"]) * per_step)

    def _numbers(self) -> Columns:
        """Phase and numbers side by side, in as many rows as the terminal's width asks for."""
        cells = [Text(self._phase, style="italic", no_wrap=True)]
        cells += [
            Text.assemble((f"{name} ", "dim"), value, no_wrap=True) for name, value in self._cells()
        ]
        return Columns(cells, padding=(0, 3))
