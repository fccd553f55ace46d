"""A launch's request as one complete value, and the listener that follows its events.

A verb makes the value from its options, and it goes down unchanged: nothing below loads a recipe or
reads an option again. One listener goes along and gets the events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dslm.decide.job import Job
from dslm.launch.outcome import Outcome
from dslm.launch.spec import LaunchRequest
from dslm.lifecycle.fleet import Fleet
from dslm.recipe.load import LoadedRecipe
from dslm.run.attempt import Attempt
from dslm.run.directory import RunDirectory
from dslm.run.events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRequest:
    """A training that was asked for."""

    recipe: LoadedRecipe
    fleet: Fleet
    output: Path | None = None  # the run directory; None: `runs/RECIPE-TIME`
    master_port: int | None = None  # where the ranks meet; None: a free port
    resume: bool = False  # fail where there is no unfinished run
    trust_checkpoint: bool = False  # load more of it than tensors, which may run code
    force: bool = False  # also where the plan doesn't fit
    probe: int = 0  # end after so many steps, without evaluation and export; 0: train to the end
    proof: Path | None = None  # what a verification of the layout found
    command: tuple[str, ...] = ()  # the command line, for the manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptRequest:
    """A user's own script that was asked for, on every rank."""

    script: Path
    fleet: Fleet
    arguments: tuple[str, ...] = ()  # of the script
    recipe: LoadedRecipe | None = None  # of which the script is given the config
    pass_config: bool = False  # as `--deepspeed PATH`, too
    force: bool = False  # also where the recipe's plan doesn't fit
    output: Path | None = None  # the run directory; None: `runs/SCRIPT-TIME`
    master_port: int | None = None
    command: tuple[str, ...] = ()


class Listener(Protocol):
    """The listener to the events of a launch: a screen, or a test's list."""

    def run_made(self, run: Path) -> None:
        """Take in where the run is; called before anything starts."""

    def note(self, text: str) -> None:
        """Take in a line for people: what takes a while before there is a run."""

    def event(self, event: Event) -> None:
        """Take in one event of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a launch would start, and what its ranks would read."""

    request: LaunchRequest
    attempt: Attempt
    job: Job | None  # None: of a script without a recipe
    remarks: tuple[str, ...] = ()  # what would be told, or found later


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A launch that is over: its run, and how its last attempt ended."""

    run: RunDirectory
    outcome: Outcome
    resume: str | None = None  # the command line that resumes it; None: nothing can
