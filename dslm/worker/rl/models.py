"""A reward model by its name: one number for a text, with the tokenizer that it was made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dslm.errors import RecipeError, Where
from dslm.recipe.rewarding import Reward
from dslm.recipe.schema import Recipe
from dslm.worker.data.records import first_line
from dslm.worker.number_formats import DTYPES


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any


def reward_model(reward: Reward, recipe: Recipe) -> RewardModel:
    """Load the model of a reward, partitioned as the trained one is.

    Raises:
        RecipeError: it can't be loaded, or gives more numbers than one.
    """
    name, where = str(reward.model), Where(key="rewards")
    trusted = recipe.model.trust_remote_code
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=DTYPES[recipe.precision], trust_remote_code=trusted
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusted)
    except (OSError, ValueError, RuntimeError, KeyError) as failure:
        raise RecipeError(
            f"the reward model `{name}` can't be loaded: {first_line(failure)}",
            where=where,
            hint="a Hub name, or a folder: `dslm train … --with reward` makes one",
        ) from failure
    if model.config.num_labels != 1:
        raise RecipeError(
            f"the reward model `{name}` gives {model.config.num_labels} numbers for a text, not 1",
            where=where,
            hint="a model that was trained for classification is none: train one with `reward`",
        )
    return RewardModel(model, tokenizer)
