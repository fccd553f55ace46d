"""`dslm tune --over`: short trainings with other values of a recipe's keys; the lowest loss wins.

Every combination is tried where they are few; of more, Optuna's TPE sampler (arXiv 2304.11127)
chooses from what was tried. All trials read the same samples in the same order, so that their
training losses can be compared step by step; one that is above the middle of the others, once it
had time to show what it does, is given up.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import mean, median
from typing import TYPE_CHECKING

from dslm.codec import Count, Json, Strict, line_of
from dslm.errors import OptionError, RecipeError, Where
from dslm.files import write_atomic
from dslm.lifecycle.trial import (
    PROBING,
    TUNED,
    Tuning,
    check_same,
    read_trials,
    run_trial,
    run_trials,
    tuned_recipe,
)
from dslm.recipe.load import load_recipe
from dslm.recipe.yaml import parse_value
from dslm.run.events import Step
from dslm.units import number_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Values = Mapping[str, Json]  # of the recipe's keys
Over = Mapping[str, tuple[Json, ...]]  # the values to try, by key
_TRIALS = "values.jsonl"
_LAST = 0.25  # share of a trial's steps whose mean loss counts
_PATIENCE = 1 / 3  # share of the steps before which no trial is given up
_ENOUGH = 3  # trials that a middle is taken of


@dataclass(frozen=True, kw_only=True, slots=True)
class ValuesTrial(Strict):
    """What some values led to; without a loss where it failed."""

    number: Count
    texts: Mapping[str, str]  # by key, the value as JSON
    losses: tuple[float, ...] = ()  # by step
    given_up: bool = False
    why: str = ""

    @property
    def values(self) -> dict[str, Json]:
        """The values by key."""
        return {key: json.loads(text) for key, text in self.texts.items()}

    @property
    def loss(self) -> float | None:
        """The mean of the last steps; None where it wasn't trained to the end."""
        if self.given_up or not self.losses:
            return None
        return mean(self.losses[-max(1, int(_LAST * len(self.losses))) :])


def combinations(over: Over) -> list[dict[str, Json]]:
    """Every combination of values."""
    return [dict(zip(over, each, strict=True)) for each in itertools.product(*over.values())]


OnTrial = Callable[[Sequence[ValuesTrial], Values | None], None]


def parse_over(texts: Sequence[str]) -> dict[str, tuple[Json, ...]]:
    """Read `KEY=V1,V2,…`, a key each.

    Raises:
        OptionError: no key, a key twice, or fewer than two values.
    """
    found: dict[str, tuple[Json, ...]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip()
        try:
            read, _ = parse_value(f"[{listed}]", key)
        except RecipeError:
            read = []
        values = tuple(read) if isinstance(read, list) else ()
        distinct = len({json.dumps(value, default=str) for value in values}) == len(values)
        if not key or not equals or len(values) < 2 or not distinct or key in found:
            raise OptionError(
                f"`{text}` doesn't name one key with two values or more",
                where=Where(key="--over"),
                hint="`--over optimizer.lr=1e-5,2e-5,5e-5`, each key once, each value once",
            )
        found[key] = values
    return found


def best_values(trials: Sequence[ValuesTrial]) -> ValuesTrial | None:
    """Return the trial with the lowest loss."""
    done = [trial for trial in trials if trial.loss is not None]
    return min(done, key=lambda trial: trial.loss or math.inf, default=None)


def search(
    asked: Tuning, over: Over, on_trial: OnTrial, tell: Callable[[str], None]
) -> list[ValuesTrial]:
    """Try values and write the recipe of those that win; returns every trial.

    Raises:
        InputError: a value is wrong in the recipe.
        OptionError: Optuna is needed and isn't there, the folder holds other trials, or none ended.
    """
    for possible in combinations(over)[: 10 * asked.trials]:
        load_recipe(asked.recipe, [*asked.settings, *_as_settings(possible)])
    chooser = _Chooser(asked, combinations(over))
    check_same(asked.folder, _subject(asked, over))
    trials = read_trials(asked.folder / _TRIALS, ValuesTrial)
    run_trials(
        asked, _TRIALS, trials, on_trial=on_trial, following=chooser.following,
        tried=lambda values: _tried(asked, values, trials, tell),
    )  # fmt: skip
    winner = best_values(trials)
    if winner is None:
        why = next((trial.why for trial in trials if trial.why), "no trial was made")
        raise OptionError(f"no trial could be compared: {why}", where=Where(file=asked.folder))
    said = (
        f"loss {winner.loss:.4g} after {number_of(asked.steps, 'step')}, the lowest in this folder"
    )
    text = tuned_recipe(asked.recipe, asked.settings, winner.values, said)
    write_atomic(asked.folder / TUNED, text)
    return trials


def _subject(asked: Tuning, over: Over) -> str:
    recipe = asked.request.recipe.recipe
    return line_of(
        {
            "recipe": recipe.model_dump_json(),
            "over": {key: list(values) for key, values in over.items()},
            "steps": asked.steps,
            "world_size": asked.request.fleet.cluster.world_size,
        }
    )


def _as_settings(values: Values) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _tried(
    asked: Tuning, values: Values, trials: Sequence[ValuesTrial], tell: Callable[[str], None]
) -> ValuesTrial:
    number = len(trials) + 1
    tried = run_trial(
        asked.request,
        load_recipe(asked.recipe, [*asked.settings, *_as_settings(values), *PROBING]),
        asked.folder / f"values-{number}",
        steps=asked.steps,
        give_up=lambda steps: worse(_losses(steps), trials, asked.steps),
        tell=tell,
    )
    losses = _losses(tried.steps)
    why = tried.why or ("" if losses else "it made no step")
    texts = {key: json.dumps(value) for key, value in values.items()}
    return ValuesTrial(
        number=number, texts=texts, losses=tuple(losses), given_up=tried.gave_up, why=why
    )


def _losses(steps: Sequence[Step]) -> list[float]:
    return [step.loss for step in steps if step.loss is not None]


def worse(losses: Sequence[float], trials: Sequence[ValuesTrial], steps: int) -> bool:
    """Whether losses so far are above the middle of what the other trials had by then.

    Source: Golovin et al., Google Vizier (KDD 2017), section 3.2.1, the median stopping rule.
    """
    made = len(losses)
    others = [mean(trial.losses[:made]) for trial in trials if len(trial.losses) >= made]
    if made < max(1.0, _PATIENCE * steps) or len(others) < _ENOUGH:
        return False
    return min(losses) > median(others)


@dataclass(slots=True)
class _Chooser:
    """Chooses values to try: every combination in turn, or what Optuna proposes."""

    asked: Tuning
    every: list[dict[str, Json]]
    _study: optuna.Study | None = None
    _told: int = 0
    _spaces: dict[str, BaseDistribution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.every) <= self.asked.trials:
            return
        if find_spec("optuna") is None:
            raise OptionError(
                f"{len(self.every)} combinations are more than "
                f"{number_of(self.asked.trials, 'trial')}, and Optuna, which would choose among "
                "them, is not installed",
                where=Where(key="--over"),
                hint=f"pip install 'dslm[tune]', or `--trials {len(self.every)}`",
            )
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = self.asked.request.recipe.recipe.seed
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        # values as texts: Optuna's categories are numbers, texts and truth values alone
        for key in self.every[0]:
            texts = list(dict.fromkeys(json.dumps(values[key]) for values in self.every))
            self._spaces[key] = optuna.distributions.CategoricalDistribution(texts)

    def following(self, trials: Sequence[ValuesTrial]) -> Values | None:
        """The values to try next; None: all were tried."""
        tried = [trial.values for trial in trials]
        left = [values for values in self.every if values not in tried]
        study = self._study
        if not left or study is None:
            return left[0] if left else None
        self._tell(study, trials[self._told :])
        self._told = len(trials)
        for _ in range(_PROPOSALS):
            proposed = study.ask(self._spaces)
            values = {key: json.loads(text) for key, text in proposed.params.items()}
            if values in left:
                return values
            # known already: said once more, so that something else is proposed
            known = next(trial for trial in trials if trial.values == values)
            study.tell(proposed, _value(known))
        return left[0]

    def _tell(self, study: optuna.Study, trials: Sequence[ValuesTrial]) -> None:
        from optuna.trial import create_trial

        for trial in trials:
            params = dict(trial.texts)
            study.add_trial(
                create_trial(params=params, distributions=self._spaces, value=_value(trial))
            )


_PROPOSALS = 20
_FAILED = 1e9  # a loss that is worse than any


def _value(trial: ValuesTrial) -> float:
    """What Optuna is told of a trial: one that was given up has the losses that it had."""
    return mean(trial.losses[-3:]) if trial.losses and not trial.why else _FAILED
