"""The row of a check: its name, the keys it reads, the verbs that ask it, and a judge.

A judge gets a `Case` and yields a `Problem` for each thing that is wrong; it raises and prints
nothing. Knows none of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dslm.cluster.hosts import Cluster
from dslm.decide.checks.facts import ModelType
from dslm.decide.model import ModelSource
from dslm.errors import DataError, InputError, RecipeError
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile
from dslm.recipe.features import Apart
from dslm.recipe.schema import Recipe


class Verb(StrEnum):
    """The verb that asks; each check applies to some of them."""

    TRAIN = "train"  # with its dry run and its batch job
    PLAN = "plan"
    BARE = "bare"  # the plan of a model's folder or config.json, without a recipe
    LAUNCH = "launch"  # a script of one's own, given the recipe's config
    CONFIG = "config"
    VERIFY = "verify"  # a few steps of a small model, for the layout alone


ALL = frozenset(Verb)
RECIPES = ALL - {Verb.BARE}
# what dslm's own worker does with a recipe
TRAINING = frozenset({Verb.TRAIN, Verb.PLAN, Verb.VERIFY})
STARTING = frozenset({Verb.TRAIN, Verb.LAUNCH, Verb.PLAN, Verb.VERIFY})  # where something shall run
ONLY_TRAIN = frozenset({Verb.TRAIN, Verb.VERIFY})


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something wrong at a key of the recipe, and what would be right."""

    key: str
    message: str
    hint: str = ""
    error: type[InputError] = RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """The subject of a check: a recipe, its model, and the cluster."""

    recipe: Recipe
    source: ModelSource
    kind: ModelType | None  # None: no model type is known, or transformers has none such
    cluster: Cluster
    here: bool  # it runs on this machine or on hosts like it: its packages and paths count
    profile: Profile | None = None
    strategy: Strategy | None = None  # None: not planned yet

    @property
    def architecture(self) -> Mapping[str, object]:
        """The model's config as far as it is known."""
        return self.source.architecture

    @property
    def on_cpu(self) -> bool:
        """Whether ranks compute on a CPU."""
        return self.cluster.device.kind == "cpu"

    def at(self, entry: str) -> str:
        """Return the recipe's key that an entry of the model's config comes from."""
        if self.source.file is not None:
            return "model.name"
        return f"model.architecture.{entry}"


Judge = Callable[[Case], Iterable[Problem]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row of the list."""

    name: str
    looks_at: str
    judge: Judge
    verbs: frozenset[Verb] = field(default=ALL)
    planned: bool = False  # asked of the plan, not of the recipe alone
    of_machine: bool = False  # asks this machine: not when it is planned for another


def apart(rows: Iterable[Apart]) -> Judge:
    """Return the judge of a table of what doesn't go together."""

    def judge(case: Case) -> Iterator[Problem]:
        for row in rows:
            if row.clashes(case.recipe):
                yield Problem(key=row.key, message=row.message, hint=row.hint)

    return judge


def data_problem(key: str, message: str, hint: str = "") -> Problem:
    """Return a problem of the data, which is bad input of its own kind."""
    return Problem(key=key, message=message, hint=hint, error=DataError)
