"""The list of checks, and asking all of it about one recipe.

Every verb that plans or starts something asks the same list, so that a dry run, a plan and a batch
script say what a training would: the same message, the same place, the same exit code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dslm.decide.checks import (
    adapters,
    data,
    features,
    known,
    layout,
    machine,
    model,
    preferences,
    records,
    rewards,
    settings,
    versions,
)
from dslm.decide.checks.base import Case, Check, Problem, Verb
from dslm.errors import Finding, RecipeError
from dslm.recipe.load import LoadedRecipe

CHECKS: tuple[Check, ...] = (
    *machine.CHECKS,
    *adapters.CHECKS,
    *model.CHECKS,
    *layout.CHECKS,
    *features.CHECKS,
    *data.CHECKS,
    *records.CHECKS,
    *preferences.CHECKS,
    *rewards.CHECKS,
    *settings.CHECKS,
    *versions.CHECKS,
    *known.CHECKS,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """The verb that asks about a recipe, and the circumstances."""

    verb: Verb
    here: bool = True  # on this machine, or on hosts like it; else it is planned for other ones
    force: bool = False  # continue with a plan that does not fit
    device_known: bool = True  # False: the hosts have devices that nobody has seen yet


def against(case: Case, asking: Asking) -> Iterator[tuple[Check, Problem]]:
    """Find what stands against a recipe, or once it is planned its plan, in the list's order."""
    planned = case.strategy is not None
    for check in CHECKS:
        if asking.verb not in check.verbs or check.planned != planned:
            continue
        if check.of_machine and not asking.here:
            continue
        yield from ((check, problem) for problem in check.judge(case))


def refuse(case: Case, asking: Asking, loaded: LoadedRecipe) -> None:
    """Refuse a recipe that can't run.

    Raises:
        InputError: with everything that stands against it, each with its file and line or option.
    """
    found = [problem for _, problem in against(case, asking)]
    if not found:
        return
    if len(found) == 1:
        only = found[0]
        raise only.error(only.message, where=loaded.where(only.key), hint=only.hint)
    raise RecipeError(
        f"{len(found)} problems were found in this recipe",
        findings=[
            Finding(message=each.message, where=loaded.where(each.key), hint=each.hint)
            for each in found
        ],
    )
