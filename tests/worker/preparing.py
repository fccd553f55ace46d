"""What the tests of preparing data share: small recipes, texts, what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe
from dslm.worker.data.prepare import Prepared, prepare
from dslm.worker.tasks import task_of

WORDS = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "omicron",
]  # fmt: skip

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def recipe_of(task: str, train: Any, **settings: Any) -> Recipe:
    preset = "quickstart" if task == "pretrain" else f"quickstart-{task}"
    given = {"data.train": json.dumps(train), "data.sequence_length": 32, "data.eval": 0}
    given |= {"data.max_documents": "null"}
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    return load_recipe(preset, [f"{key}={value}" for key, value in given.items()]).recipe


def prepared(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Prepared:
    task = task_of(recipe)
    used = tokenizer if task.tokenizer else None
    return prepare(recipe, task.encoder(recipe, used), used)


def documents(count: int) -> list[str]:
    """Texts of different lengths, all different."""
    return [
        " ".join(WORDS[i % 15] for i in range(n, n + 3 + n % 40)) + f" {n}" for n in range(count)
    ]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
