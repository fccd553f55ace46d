"""A run in a few numbers; runs by their folder or name.

Reads the run directory only, through `dslm.run.history`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dslm.codec import Json, encode
from dslm.errors import OptionError, Where, did_you_mean
from dslm.run.directory import RunDirectory
from dslm.run.events import Error, Restart, Start, as_record
from dslm.run.history import History, Status, check_readable, read_history
from dslm.run.lock import owner_of

RUNS = Path("runs")  # where they are unless one says otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """The summary of a run so far, in seconds and steps; None where unknown."""

    path: str
    status: str  # done | stopped | killed | failed | unfinished
    attempts: int
    step: int
    steps: int | None
    loss: float | None
    eval_loss: float | None
    parameters: int | None
    trained_parameters: int | None
    started: float | None  # Unix seconds
    seconds: float | None
    error: str | None
    failure: Error | None  # the last error event, when the run failed
    restarts: tuple[Restart, ...]
    goodput: float | None  # share of the time that went into steps that were kept
    owner: str | None  # who trains in it now
    problems: tuple[str, ...]  # what could not be read

    def document(self) -> dict[str, Json]:
        """Return the JSON document."""
        found: dict[str, Json] = {**dict.fromkeys(self.__slots__), **encode(self)}
        found["failure"] = as_record(self.failure) if self.failure else None
        found["restarts"] = [as_record(restart) for restart in self.restarts]
        return found


def open_run(path: Path) -> RunDirectory:
    """Return the run in a folder, or of a name that `dslm runs list` prints.

    Raises:
        OptionError: there is none, or it is of a later format.
    """
    run = RunDirectory(found_run(path).absolute())
    if not run.manifest.is_file():
        names = [known.path.name for known in find_runs(RUNS)]
        raise OptionError(
            "this folder holds no run (it has no manifest.json)"
            if path.is_dir()
            else "there is no such run",
            where=Where(file=path),
            hint=did_you_mean(path.name, names) or "`dslm runs list` shows the runs below ./runs",
        )
    check_readable(run)
    return run


def found_run(path: Path) -> Path:
    """Return the folder, or the one of that name below ./runs if only that exists."""
    below = RUNS / path
    bare = len(path.parts) == 1 and path.name not in (".", "..")
    is_run = bare and not path.exists() and (below / "manifest.json").is_file()
    return below if is_run else path


def find_runs(folder: Path) -> list[RunDirectory]:
    """Return all runs directly below a folder, oldest first."""
    try:
        manifests = [(m.stat().st_ctime, m) for m in folder.glob("*/manifest.json") if m.is_file()]
    except OSError:
        return []
    return [RunDirectory(manifest.parent.absolute()) for _, manifest in sorted(manifests)]


def summarize(run: RunDirectory) -> RunSummary:
    """Return the run in a few numbers."""
    return summary_of(read_history(run))


def summary_of(history: History) -> RunSummary:
    """Summarize a history in a few numbers."""
    start, steps, evaluations = history.last(Start), history.steps, history.evaluations
    failure = history.failure
    owner = owner_of(history.run.path) if history.status is Status.UNFINISHED else None
    return RunSummary(
        path=str(history.run.path),
        status=history.status.value,
        attempts=history.attempts,
        step=history.step,
        steps=start.steps if start else None,
        loss=steps[-1].loss if steps else None,
        eval_loss=evaluations[-1].loss if evaluations else None,
        parameters=start.parameters if start else None,
        trained_parameters=start.trained_parameters if start else None,
        started=history.started,
        seconds=history.seconds,
        error=failure.message if failure else None,
        failure=failure,
        restarts=history.restarts,
        goodput=history.goodput,
        owner=str(owner) if owner else None,
        problems=history.problems,
    )
