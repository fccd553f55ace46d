"""Prepare the data of a recipe and show what came out: `dslm data`."""

from __future__ import annotations

import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from dslm.recipe.schema import Recipe
from dslm.units import number_of
from dslm.worker.answer import Tell, answer
from dslm.worker.data.packing import IGNORED, packed_sample
from dslm.worker.data.prepare import Prepared, damaged_shards, prepare
from dslm.worker.data.tokenizer import load_tokenizer
from dslm.worker.tasks import task_of
from dslm.worker.tasks.base import Tokenizer

Segment = dict[str, Any]  # `text`, and whether it is `learnt`


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Prepare (or find prepared); statistics, and as many decoded samples as asked for."""
    recipe = Recipe.model_validate(request["recipe"])
    task = task_of(recipe)
    with tempfile.TemporaryDirectory() as folder:
        tell("loading the tokenizer")
        tokenizer = load_tokenizer(recipe, Path(folder)) if task.tokenizer else None
        prepared = prepare(recipe, task.encoder(recipe, tokenizer), tokenizer, tell)
        tell("reading it back")
        packs = task.encoder(recipe, tokenizer).packs
        count = min(request["samples"], len(prepared.train))
        chosen = np.linspace(0, len(prepared.train) - 1, count).astype(int).tolist()
        return {
            "folder": str(prepared.folder),
            **prepared.statistics,
            "damaged": damaged_shards(prepared) if request["verify"] else [],
            "shown": [
                _packed(recipe, tokenizer, prepared.train[i])
                if packs
                else _columns(tokenizer, prepared, prepared.train[i])
                for i in chosen
            ],
        }


def _packed(recipe: Recipe, tokenizer: Tokenizer, stored: dict[str, Any]) -> list[Segment]:
    """The documents of a packed sample, in runs of tokens that are learnt and that are not."""
    used = len(stored["input_ids"])
    sample = packed_sample(stored, recipe.data.sequence_length, 0)
    tokens = sample["input_ids"][:used].tolist()
    learnt = (sample["labels"][:used] != IGNORED).tolist()
    document = np.repeat(np.arange(len(stored["lengths"])), stored["lengths"]).tolist()
    runs = groupby(range(used), key=lambda place: (document[place], learnt[place]))
    return [
        {
            "document": number,
            "learnt": is_learnt,
            "text": _decoded(tokenizer, [tokens[place] for place in places]),
        }
        for (number, is_learnt), places in runs
    ]


def _columns(tokenizer: Tokenizer, prepared: Prepared, stored: dict[str, Any]) -> list[Segment]:
    """A sample of any other task: a segment for each of its columns."""
    shown = []
    for name, values in stored.items():
        if name in {"place", "token_type_ids"}:
            continue
        if name == "label":
            text = prepared.labels[int(values[0])]
        elif name == "good":
            text = "good" if values[0] else "bad"
        elif name == "record":
            text = bytes(values.tolist()).decode()
        elif name == "image":
            text = number_of(len(values), "byte")
        else:
            text = _decoded(tokenizer, values.tolist())
        learnt = name in ("label", "label_ids", "chosen_ids", "completion_ids", "good")
        shown.append({"column": name, "learnt": learnt, "text": text})
    return shown


def _decoded(tokenizer: PreTrainedTokenizerBase | None, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens)) if tokenizer else " ".join(map(str, tokens))


if __name__ == "__main__":
    answer(work)
