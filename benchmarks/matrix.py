"""`make matrix`: try what works with what, cell by cell, and keep what is found as data.

    python -m benchmarks.matrix [--minutes N] [--again] [--file FILE] [WORD…]

A cell is a training of three steps on two ranks by what `dslm tune` tries with, its ranks forked
from a process that has the libraries loaded. What a check refuses is asked and not run; a device
that isn't here leaves its cells unproven. Only cells of which nothing is known are tried, so that
it goes on where it was cut off; words choose cells (`llama zenflow`), `--again` tries them anew.
Where other versions are installed than those of the file everything is tried anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

from dslm.cluster.detect import local_cluster
from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster
from dslm.codec import decode
from dslm.decide import matrix as found_of
from dslm.decide.axes import (
    FAMILIES,
    FOLDER,
    RANKS,
    ROWS,
    SETTINGS,
    Cell,
    Family,
    cells,
)
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.matrix import FILE, UNPROVEN, Matrix, Outcome, Result
from dslm.decide.ready import refusal
from dslm.errors import DslmError, RecipeError
from dslm.files import write_atomic
from dslm.launch.outcome import Status
from dslm.lifecycle.fleet import fleet_of
from dslm.lifecycle.placement import Placement
from dslm.lifecycle.request import TrainingRequest
from dslm.lifecycle.training import train
from dslm.lifecycle.trial import PROBING, run_trial
from dslm.recipe.load import LoadedRecipe, load_recipe
from tests.support.warm import work_beside

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "matrix"
STEPS = 3
_MOST_LETTERS = 300  # of a reason
_ABSENT = Outcome(Result.UNPROVEN.value, why="no such device was there")
_ELSEWHERE = {"cuda": "h100"}  # what stands for a device that isn't here
_FAMILIES = {family.name: family for family in FAMILIES}
_ROWS = {row.name: row for row in ROWS}


class Silent:
    """A listener that nobody sees."""

    def run_made(self, run: Path) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def event(self, event: object) -> None:
        """Say nothing."""


def overrides(cell: Cell) -> list[str]:
    """What a cell sets in the recipe of its family."""
    family, row = _FAMILIES[cell.family], _ROWS[cell.feature]
    given = [*_of_family(family), f"precision={cell.precision}"]
    given += [f"parallel.zero_stage={cell.stage}", f"parallel.ranks={RANKS}"]
    if row.trained:
        model = BUILD / "models" / family.name / "model"
        given += ["model.init=pretrained", f"model.name={model}", "model.tokenizer=null"]
    given += [setting.replace(FOLDER, str(BUILD / "nvme")) for setting in row.settings]
    return [*given, *PROBING]


def _of_family(family: Family) -> list[str]:
    return [f"model.architecture={json.dumps(family.architecture)}", *SETTINGS]


@cache
def here(device: str) -> bool:
    """Whether a device is in this machine."""
    return local_cluster().device.kind == device


def judged(cell: Cell) -> Outcome | None:
    """What is known of a cell before anything starts; None: it has to be tried."""
    family = _FAMILIES[cell.family]
    try:
        loaded = load_recipe(family.recipe, overrides(cell))
    except RecipeError as failure:
        why = "; ".join(each.message for each in failure.findings) or failure.message
        return Outcome(Result.REFUSED.value, "the recipe itself", _reason(why))
    near = here(cell.device)
    cluster = local_cluster(ranks=RANKS) if near else _elsewhere(cell.device)
    try:
        against = refusal(loaded, cluster, Asking(verb=Verb.TRAIN, here=near))
    except DslmError as failure:
        return Outcome(Result.REFUSED.value, "the plan", _reason(failure.message))
    if against is not None:
        return Outcome(Result.REFUSED.value, against[0], _reason(against[1]))
    return None if near else _ABSENT


def _elsewhere(device: str) -> Cluster:
    local = local_cluster(ranks=RANKS)
    return replace(local, device=device_named(_ELSEWHERE.get(device, device)))


def tried(cell: Cell) -> Outcome:
    """Train a few steps."""
    family = _FAMILIES[cell.family]
    loaded = load_recipe(family.recipe, overrides(cell))
    with tempfile.TemporaryDirectory() as folder:
        ended = run_trial(
            _request(loaded), loaded, Path(folder) / "run",
            steps=STEPS, give_up=lambda steps: False, tell=lambda detail: None,
        )  # fmt: skip
    if ended.why:
        return Outcome(Result.FAILED.value, why=_reason(ended.why))
    if [step.step for step in ended.steps if step.loss is not None] != list(range(1, STEPS + 1)):
        return Outcome(Result.FAILED.value, why=f"no loss after each of {STEPS} steps")
    return Outcome(Result.OK.value)


def _reason(text: str) -> str:
    """A reason in one line, without the folders of this machine."""
    return " ".join(text.replace(str(BUILD), FOLDER).split())[:_MOST_LETTERS]


def _request(loaded: LoadedRecipe, output: Path | None = None) -> TrainingRequest:
    fleet = fleet_of(Placement(num_gpus=RANKS))
    return TrainingRequest(recipe=loaded, fleet=fleet, output=output)


def _train_before(family: Family) -> None:
    """Make the model of a family that adapters are trained beside, unless it is there."""
    run = BUILD / "models" / family.name
    if (run / "model" / "config.json").is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    given = [*_of_family(family), "precision=fp32", "duration.steps=1", "evaluation.sample=null"]
    loaded = load_recipe(family.recipe, [*given, "parallel.zero_stage=0", *PROBING])
    ended = train(_request(loaded, run), Silent())
    if ended.outcome.status is not Status.DONE:
        raise SystemExit(f"{family.name} can't be trained: {ended.outcome.reason}; {run}")


def _round(cell: Cell) -> tuple[int, int]:
    """What is tried first: of every family a lower stage, a higher one, then all of the first."""
    pair = (cell.stage, cell.precision)
    first = cell.family == FAMILIES[0].name
    number = {(2, "bf16"): 0, (3, "fp32"): 1}.get(pair, 2 if first else 3)
    return number, list(_ROWS).index(cell.feature)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which cells are to be tried, and for how long."""

    words: tuple[str, ...] = ()
    minutes: float | None = None
    again: bool = False

    def has(self, cell: Cell) -> bool:
        """Whether the words choose a cell: each stands in it."""
        return all(word in str(cell) for word in self.words)


def left(matrix: Matrix, asked: Asked) -> list[Cell]:
    """The cells that are to be tried, the most telling first."""

    def is_open(cell: Cell) -> bool:
        outcome = matrix.at(cell)
        open_ = outcome.result == Result.UNPROVEN if here(cell.device) else outcome == UNPROVEN
        return asked.again or open_

    return sorted((cell for cell in cells() if asked.has(cell) and is_open(cell)), key=_round)


def begun(file: Path) -> Matrix:
    """The matrix to go on with: what there is, or a new one where other versions are installed."""
    old = decode(Matrix, file.read_bytes()) if file.is_file() else Matrix()
    if not old.applies:
        return Matrix(versions=found_of.installed())
    return old


def run(asked: Asked, file: Path) -> Matrix:
    """Try what is left, and write down each outcome as it is found."""
    matrix, began = begun(file), time.monotonic()
    todo = left(matrix, asked)
    found: dict[Cell, Outcome] = {}
    (BUILD / "nvme").mkdir(parents=True, exist_ok=True)
    # what was found before must not decide what is tried now; and no model is traced, since all
    # that a cell says is given
    with (
        patch.object(found_of, "recorded", Matrix),
        patch("dslm.decide.job.profile_of", lambda *given, **more: (None, "not traced")),
    ):
        for name in dict.fromkeys(cell.family for cell in todo if _ROWS[cell.feature].trained):
            _train_before(_FAMILIES[name])
        for number, cell in enumerate(todo, 1):
            outcome = judged(cell)
            if outcome is None:
                if asked.minutes is not None and time.monotonic() - began > 60 * asked.minutes:
                    break
                outcome = _told(f"{number}/{len(todo)}", cell)
                matrix, found = _kept(file, matrix, {**found, cell: outcome}), {}
            else:
                found[cell] = outcome
    return _kept(file, matrix, found)


def _told(place: str, cell: Cell) -> Outcome:
    """Try a cell, and print what came of it."""
    start = time.monotonic()
    outcome = tried(cell)
    took, why = time.monotonic() - start, f": {outcome.why}" if outcome.why else ""
    print(f"[{place}] {cell}: {outcome.result}{why} ({took:.1f} s)", flush=True)
    return outcome


def _kept(file: Path, matrix: Matrix, found: dict[Cell, Outcome]) -> Matrix:
    made = replace(found_of.filled(matrix, found), made=time.strftime("%Y-%m-%d"))
    write_atomic(file, found_of.text_of(made))
    return made


def counted(matrix: Matrix) -> Iterator[str]:
    """How many cells have which result, a line a device."""
    for device in dict.fromkeys(cell.device for cell in cells()):
        results = [matrix.at(cell).result for cell in cells() if cell.device == device]
        counts = ", ".join(f"{results.count(each)} {each}" for each in Result)
        yield f"{device}: {len(results)} cells: {counts}"


def work(arguments: Sequence[str]) -> None:
    """Try cells, and say what is known by then."""
    parser = argparse.ArgumentParser(description="What works with what.")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--file", type=Path, default=FILE)
    given = parser.parse_args(arguments)
    matrix = run(Asked(tuple(given.words), given.minutes, given.again), given.file)
    print("\n".join(counted(matrix)))


if __name__ == "__main__":
    sys.exit(work_beside("benchmarks.matrix", sys.argv[1:]))
