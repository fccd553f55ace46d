"""What works with what, as it was found: `matrix.json`, made by `make matrix`, typed by nobody.

Of each cell (`dslm/decide/axes.py`) an outcome: it trained, a check refuses it, it failed and why,
or nobody has tried. What was found is of the versions that it was found with, which the file names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

from dslm.cluster.wrong_versions import installed_release
from dslm.codec import Json, Strict, decode, encode
from dslm.decide.axes import DEVICES, FAMILIES, PRECISIONS, ROWS, STAGES, Cell
from dslm.decide.model import model_of
from dslm.errors import RecipeError
from dslm.recipe.load import LoadedRecipe

FILE = Path(__file__).with_suffix(".json")
FORMAT = 1
PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "peft", "bitsandbytes")


class Result(StrEnum):
    """What was found in a cell."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Outcome(Strict):
    """A result, for a refusal the check that refuses, and why."""

    result: str
    by: str = ""
    why: str = ""


UNPROVEN = Outcome(Result.UNPROVEN.value)
Stages = tuple[int, ...]  # by stage: the number of an outcome
Found = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Stages]]]]
Spread = list[tuple[Outcome, dict[str, list[int]]]]  # outcomes with their precisions and stages


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix(Strict):
    """All cells: by device, family, feature, precision and stage the number of an outcome."""

    format: int = FORMAT
    made: str = ""  # the day of the last cell that was run
    versions: Mapping[str, str] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = (UNPROVEN,)
    cells: Found = field(default_factory=dict)

    def at(self, cell: Cell) -> Outcome:
        """Return what was found in a cell."""
        family = self.cells.get(cell.device, {}).get(cell.family, {})
        found = family.get(cell.feature, {}).get(cell.precision, ())
        return self.outcomes[found[cell.stage]] if cell.stage < len(found) else UNPROVEN

    def of(self, device: str, family: str, feature: str) -> Spread:
        """Return the outcomes of a feature of a family, each with where it was found."""
        found: dict[Outcome, dict[str, list[int]]] = {}
        for precision in PRECISIONS:
            for stage in STAGES:
                outcome = self.at(Cell(device, family, feature, precision, stage))
                found.setdefault(outcome, {}).setdefault(precision, []).append(stage)
        return list(found.items())

    @property
    def applies(self) -> bool:
        """Whether it was found with the versions that are installed here."""
        return bool(self.versions) and self.versions == installed()


@cache
def recorded() -> Matrix:
    """Return what ships with dslm."""
    return decode(Matrix, FILE.read_bytes())


def installed() -> dict[str, str]:
    """Return the versions of the stack, without what their builds are called."""
    found = {package: installed_release(package) for package in PACKAGES}
    return {name: release.partition("+")[0] for name, release in found.items() if release}


def filled(matrix: Matrix, found: Mapping[Cell, Outcome]) -> Matrix:
    """Return a matrix of exactly the cells that there are, with what was found now in them."""
    outcomes: dict[Outcome, int] = {UNPROVEN: 0}

    def number(cell: Cell) -> int:
        return outcomes.setdefault(found.get(cell) or matrix.at(cell), len(outcomes))

    placed = {
        device: {
            family.name: {
                row.name: {
                    precision: tuple(
                        number(Cell(device, family.name, row.name, precision, stage))
                        for stage in STAGES
                    )
                    for precision in PRECISIONS
                }
                for row in ROWS
            }
            for family in FAMILIES
        }
        for device in DEVICES
    }
    return replace(matrix, outcomes=tuple(outcomes), cells=placed)


def text_of(matrix: Matrix) -> str:
    """A matrix as JSON, a line a feature."""

    def put(value: Json, depth: int) -> str:
        if depth and isinstance(value, Mapping):
            rows = [f"{json.dumps(key)}: {put(below, depth - 1)}" for key, below in value.items()]
            return "{\n" + ",\n".join(rows) + "\n}"
        if depth and isinstance(value, Sequence) and not isinstance(value, str):
            return "[\n" + ",\n".join(put(below, 0) for below in value) + "\n]"
        return json.dumps(value, ensure_ascii=False)

    document = encode(matrix)
    rows = [
        f"{json.dumps(key)}: {put(value, 3 if key == 'cells' else int(key == 'outcomes'))}"
        for key, value in document.items()
    ]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def known_of(loaded: LoadedRecipe) -> dict[str, Json] | None:
    """What is known of a recipe's model, for `dslm recipes show --json`; None: nothing is."""
    try:
        family = model_of(loaded).architecture.get("model_type")
    except RecipeError:
        return None  # there is no such model here: training says so
    return _shown(recorded(), str(family))


def _shown(matrix: Matrix, family: str) -> dict[str, Json] | None:
    if family not in {each.name for each in FAMILIES}:
        return None
    return {
        "family": family,
        "made": matrix.made,
        "versions": dict(matrix.versions),
        "installed": matrix.applies,
        **{device: dict(_features(matrix, device, family)) for device in DEVICES},
    }


def _features(matrix: Matrix, device: str, family: str) -> Iterator[tuple[str, Json]]:
    for row in ROWS:
        spread = matrix.of(device, family, row.name)
        yield row.name, [{**_said(outcome), "stages": dict(at)} for outcome, at in spread]


def _said(outcome: Outcome) -> dict[str, Json]:
    return {name: text for name, text in encode(outcome).items() if text}
