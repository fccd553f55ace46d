"""Tasks: for each, its model class, how samples become a batch, and its loss.

A task is a value; adding one means a row here and, if it needs them, its collator and loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dslm.errors import RecipeError, Where
from dslm.recipe.schema import Recipe
from dslm.worker.evaluate import Collate
from dslm.worker.tasks.mlm import MaskingCollator, masked_loss
from dslm.worker.tasks.pretrain import stack


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a task needs beside the model: `loss` None is the model's own."""

    auto_class: str
    collator: Callable[[Recipe, PreTrainedTokenizerBase], Collate]
    loss: Callable[..., Any] | None = None


_TASKS = {
    "pretrain": Task(auto_class="AutoModelForCausalLM", collator=lambda *_: stack),
    "mlm": Task(
        auto_class="AutoModelForMaskedLM",
        collator=MaskingCollator.of,
        loss=masked_loss,
    ),
}


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe.

    Raises:
        RecipeError: it can't be trained by this version.
    """
    task = _TASKS.get(recipe.task)
    if task is None:
        raise RecipeError(
            f"the task `{recipe.task}` can't be trained yet",
            where=Where(key="task"),
            hint=f"these can: {', '.join(_TASKS)}; `dslm launch` runs your own script",
        )
    return task
