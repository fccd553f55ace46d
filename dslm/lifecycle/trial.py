"""One trial: a probe of few steps in a run directory of its own, given up once it can't win.

Without evaluation, checkpoint and export, on data that all trials share. What was tried, and what
its steps mean, is known to those who call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from dslm.codec import Json, Malformed, Strict, decode, encode, line_of
from dslm.diagnose.catalogue import DEVICE_MEMORY, HOST_MEMORY
from dslm.errors import DslmError, Interrupted, OptionError, Where
from dslm.files import append_line, write_atomic
from dslm.launch.outcome import Status
from dslm.lifecycle.request import TrainingRequest
from dslm.lifecycle.training import train
from dslm.recipe.load import LoadedRecipe
from dslm.recipe.tree import EXTENDS, parents_of
from dslm.recipe.yaml import dump_yaml, parse_value
from dslm.run.directory import RunDirectory
from dslm.run.events import Event, Step
from dslm.run.history import read_history

# A trial trains as the recipe does, but says every step, and does nothing beside it.
PROBING = (
    "log.every=1", "evaluation.every=null", "evaluation.sample=null", "checkpoint.every=null",
    "checkpoint.on_stop=false", "log.report_to=[]",
)  # fmt: skip
TUNED = "tuned.yaml"
_OUT_OF_MEMORY = frozenset({*DEVICE_MEMORY, *HOST_MEMORY})

_Trial = TypeVar("_Trial", bound=Strict)
_Next = TypeVar("_Next")  # what a trial is of
GiveUp = Callable[[Sequence[Step]], bool]  # whether the steps so far say that it can't win


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What was asked for."""

    recipe: str  # as it was named
    settings: tuple[str, ...]
    request: TrainingRequest  # of the recipe itself; its output is the folder
    folder: Path
    trials: int = 10
    steps: int = 8
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What a trial did: its steps, or why it failed."""

    steps: tuple[Step, ...] = ()
    gave_up: bool = False
    why: str = ""
    out_of_memory: bool = False


@dataclass(slots=True)
class _Watched:
    """A listener of a trial: it asks the run to stop once the trial is given up."""

    tell: Callable[[str], None]
    give_up: GiveUp
    run: RunDirectory | None = None
    steps: list[Step] = field(default_factory=list)
    gave_up: bool = False

    def run_made(self, run: Path) -> None:
        """Take in where a stop is asked for."""
        self.run = RunDirectory(run)

    def note(self, text: str) -> None:
        """Take in a line for people."""
        self.tell(text)

    def event(self, event: Event) -> None:
        """Take in a step, and judge by all of them."""
        if not isinstance(event, Step):
            return
        self.steps.append(event)
        if self.run is not None and not self.gave_up and self.give_up(self.steps):
            self.gave_up = True
            self.run.stop_request.touch()


def run_trial(
    request: TrainingRequest,
    loaded: LoadedRecipe,
    folder: Path,
    *,
    steps: int,
    give_up: GiveUp,
    tell: Callable[[str], None],
) -> Tried:
    """Train for some steps, fewer where it is given up.

    Raises:
        Interrupted: somebody pressed Ctrl-C.
    """
    probe = replace(
        request, recipe=loaded, output=_free(folder), probe=steps, force=True, resume=False,
        fleet=replace(request.fleet, max_restarts=0),
    )  # fmt: skip
    watched = _Watched(tell, give_up)
    try:
        ended = train(probe, watched)
    except DslmError as failure:
        return Tried(why=failure.message)
    if ended.outcome.status in (Status.STOPPED, Status.KILLED) and not watched.gave_up:
        raise Interrupted(
            f"stopped in {folder.name}",
            where=Where(file=folder.parent),
            hint="the same command continues with the next trial",
        )
    history = read_history(ended.run)
    failure_event = history.failure
    if failure_event is not None:
        return Tried(
            why=failure_event.message, out_of_memory=failure_event.id in _OUT_OF_MEMORY
        )  # fmt: skip
    return Tried(steps=tuple(history.all(Step)), gave_up=watched.gave_up)


def run_trials(
    tuning: Tuning,
    file: str,
    trials: list[_Trial],
    *,
    following: Callable[[Sequence[_Trial]], _Next | None],
    tried: Callable[[_Next], _Trial],
    on_trial: Callable[[Sequence[_Trial], _Next | None], None],
) -> None:
    """Add trials to those that there are, each written down as it ends.

    Args:
        tuning: how many there may be, and for how long.
        file: in the folder, where they are written down.
        trials: those that there are.
        following: what to try after them; None: nothing more.
        tried: tries it.
        on_trial: called with the trials so far, and what is tried now.
    """
    deadline = time.monotonic() + 60 * tuning.minutes if tuning.minutes is not None else None
    while len(trials) < tuning.trials:
        what = following(trials)
        if what is None or (deadline is not None and time.monotonic() > deadline):
            break
        on_trial(trials, what)
        trial = tried(what)
        append_line(tuning.folder / file, line_of(encode(trial)))
        trials.append(trial)
        on_trial(trials, None)


def _free(folder: Path) -> Path:
    """A folder that isn't there: one of a trial that was cut off stays for whoever looks."""
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{number}")
    return folder


def check_same(folder: Path, subject: str) -> None:
    """Check that a folder holds no trials of something else, and write down of what it holds some.

    Raises:
        OptionError: it does.
    """
    file = folder / "subject.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, subject)
    elif file.read_text(encoding="utf-8") != subject:
        raise OptionError(
            "this folder holds the trials of another recipe or cluster",
            where=Where(file=folder),
            hint="name a new folder with `-o`, or delete this one",
        )


def read_trials(file: Path, kind: type[_Trial]) -> list[_Trial]:
    """Return the trials that are written down; a last line that was cut off is taken away."""
    if not file.is_file():
        return []
    found, lines = [], file.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            found.append(decode(kind, line))
        except Malformed:
            continue
    if len(found) < len(lines):  # the next one begins a line of its own
        write_atomic(file, "".join(f"{line_of(encode(trial))}\n" for trial in found))
    return found


def tuned_recipe(recipe: str, settings: Sequence[str], won: Mapping[str, Json], said: str) -> str:
    """A recipe that extends the one that was tuned, by what it was tuned with and what won."""
    path = Path(recipe)
    parents = [str(path.absolute()) if path.is_file() else recipe]
    given: dict[str, Json] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key.strip() == EXTENDS:  # of `--with`
            parents += parents_of(text)
        else:
            given[key.strip()] = parse_value(text, key)[0]
    content: dict[str, Json] = {EXTENDS: list(parents) if len(parents) > 1 else parents[0]}
    for key, value in {**given, **won}.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})  # type: ignore[assignment]
        place[last] = value
    return f"# {said}\n{dump_yaml(content)}"
