"""Check on what was tried before and failed: the matrix of what works with what.

It speaks only of the versions that are installed, of more than one rank, and of tasks that train
the same kind of model as its cells did.
"""

from __future__ import annotations

from collections.abc import Iterator

from dslm.decide import matrix
from dslm.decide.axes import FAMILIES, ROWS, Cell, Row
from dslm.decide.checks.base import STARTING, Case, Check, Problem, Verb
from dslm.decide.checks.model import HEADS
from dslm.plan.strategy import settled

_TRIES = "`--set guards.on_trouble=warn` trains all the same"


def failing(case: Case) -> Iterator[tuple[Row, Cell, matrix.Outcome]]:
    """Find the features of a planned recipe that are known to fail with its model where it runs."""
    found = matrix.recorded()
    kind = case.architecture.get("model_type")
    family = next((each for each in FAMILIES if each.name == kind), None)
    if case.strategy is None or family is None:
        return
    if not found.applies or case.cluster.world_size == 1:
        return
    recipe = settled(case.recipe, case.strategy)
    if HEADS.get(recipe.task) != HEADS[family.task]:
        return
    stage, device = recipe.parallel.zero_stage, case.cluster.device.kind
    for row in ROWS:
        if isinstance(stage, int) and row.on(recipe):
            cell = Cell(device, family.name, row.name, recipe.precision, stage)
            outcome = found.at(cell)
            if outcome.result == matrix.Result.FAILED:
                yield row, cell, outcome


def _known(case: Case) -> Iterator[Problem]:
    if case.recipe.guards.on_trouble == "warn":
        return
    found = matrix.recorded()
    with_ = ", ".join(f"{name} {release}" for name, release in found.versions.items())
    tried = f"(tried on {found.made} with {with_}, as here)"
    for row, cell, outcome in failing(case):
        yield Problem(
            key=row.key if row.settings else "parallel.zero_stage",
            message=f"{_what(row, cell)}: {outcome.why} {tried}",
            hint=_TRIES,
        )


def _what(row: Row, cell: Cell) -> str:
    feature = f"`{row.name}`" if row.settings else "training"
    place = f"at ZeRO stage {cell.stage} in {cell.precision} on {cell.device}"
    return f"{feature} fails with a model of type `{cell.family}` {place}"


CHECKS = (
    Check(
        name="what is known to fail",
        looks_at="model_type, parallel, precision, features, installed packages",
        judge=_known,
        verbs=STARTING - {Verb.VERIFY, Verb.LAUNCH},
        planned=True,
        of_machine=True,
    ),
)
