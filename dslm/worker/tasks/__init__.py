"""Tasks: what is learnt from the data, a module each."""

from __future__ import annotations

from dslm.errors import RecipeError, Where
from dslm.recipe.extras import check_extras
from dslm.recipe.schema import Recipe
from dslm.worker.tasks.base import Task
from dslm.worker.tasks.classify import CLASSIFY
from dslm.worker.tasks.dpo import DPO
from dslm.worker.tasks.grpo import GRPO
from dslm.worker.tasks.kto import KTO
from dslm.worker.tasks.mlm import MLM
from dslm.worker.tasks.orpo import ORPO
from dslm.worker.tasks.pretrain import PRETRAIN
from dslm.worker.tasks.reward import REWARD
from dslm.worker.tasks.seq2seq import SEQ2SEQ
from dslm.worker.tasks.sequence import SEQUENCE
from dslm.worker.tasks.sft import SFT
from dslm.worker.tasks.vision import VISION

_TASKS = {
    "pretrain": PRETRAIN,
    "mlm": MLM,
    "sft": SFT,
    "dpo": DPO,
    "orpo": ORPO,
    "kto": KTO,
    "reward": REWARD,
    "grpo": GRPO,
    "seq2seq": SEQ2SEQ,
    "classify": CLASSIFY,
    "vision": VISION,
    "sequence": SEQUENCE,
}


def task_of(recipe: Recipe) -> Task:
    """Return the task of a recipe.

    Raises:
        RecipeError: it has none of its own (`script`), or a package for it is not installed.
    """
    check_extras(recipe)
    task = _TASKS.get(recipe.task)
    if task is None:
        raise RecipeError(
            f"the task `{recipe.task}` is your own script's",
            where=Where(key="task"),
            hint=f"`dslm launch SCRIPT` runs it; here: {', '.join(_TASKS)}",
        )
    return task
