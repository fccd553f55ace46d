"""Pre-training on text: every token is predicted from those before it in its document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dslm.recipe.schema import Recipe
from dslm.worker.data.packing import packed_sample
from dslm.worker.data.tokenizer import token_ids
from dslm.worker.metrics import TokenLoss
from dslm.worker.tasks.base import Collate, Task, Tokenizer, pad_token

_MULTIPLE = 8  # tokens, of samples that are as long as they need to be: what a GPU's units like


class TextEncoder:
    """Text to tokens, the end-of-text token last; `input_ids` in a record are taken as they are."""

    packs = True

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.labels: dict[str, int] = {}
        self.notes: Counter[str] = Counter()
        self._field = recipe.data.text_field
        self._tokenizer = tokenizer
        end = tokenizer.eos_token_id
        self._end = [end] if end is not None else []
        self._known = len(tokenizer)

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids` of each record."""
        texts = [self._text_of(record) for record in records]
        good = [text for text, what in texts if not what]
        ids = iter(token_ids(self._tokenizer, good))
        found: list[dict[str, Sequence[int]] | str] = []
        for record, (_, what) in zip(records, texts, strict=True):
            if not what:
                found.append({"input_ids": [*next(ids), *self._end]})
            elif self._field not in record and "input_ids" in record:
                found.append(self._given(record["input_ids"]))
            else:
                found.append(what)
        return found

    def _given(self, ids: Any) -> dict[str, Sequence[int]] | str:
        if not isinstance(ids, list) or not ids or not all(type(number) is int for number in ids):
            return "its `input_ids` are not a list of whole numbers"
        if min(ids) < 0 or max(ids) >= self._known:
            return f"its `input_ids` are not all from 0 to {self._known - 1}, the tokenizer's"
        return {"input_ids": ids}

    def _text_of(self, record: dict[str, Any]) -> tuple[str, str]:
        return text_of(record, self._field, "data.text_field")


def text_of(record: dict[str, Any], field: str, key: str = "") -> tuple[str, str]:
    """Return the text in a field of a record, and what is wrong with it ("" if nothing is)."""
    if field not in record:
        fields = ", ".join(f"`{name}`" for name in record)
        return "", f"has no field `{field}`{f' ({key})' if key else ''}, only {fields}"
    text = record[field]
    if not isinstance(text, str):
        return "", f"its `{field}` is not text but {type(text).__name__}"
    if not text.strip():
        return "", f"its `{field}` is empty"
    return text, ""


def stacking(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    """Makes a batch of packed samples: `input_ids`, `position_ids`, `labels`, all (B, L).

    Samples of a document each are as long as the longest of the batch, unless somebody needs all
    batches to be alike: a compiler, or ranks that share sequences.
    """
    length, pad = recipe.data.sequence_length, pad_token(tokenizer)
    model, alike = recipe.model, recipe.data.packing or recipe.parallel.sequence != 1
    alike = alike or model.compile or model.deepcompile
    multiple = _MULTIPLE if torch.cuda.is_available() else 1

    def stack(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        wanted = length if alike else min(length, -(-longest // multiple) * multiple)
        made = [packed_sample(sample, wanted, pad) for sample in samples]
        batch = {name: torch.stack([sample[name] for sample in made]) for name in made[0]}
        if not recipe.data.packing:  # padding goes on with its document: attention is one product
            batch["position_ids"] = torch.arange(wanted).repeat(len(samples), 1)
        return batch

    return stack


PRETRAIN = Task(
    auto_class="AutoModelForCausalLM",
    encoder=TextEncoder,
    collator=stacking,
    metric=lambda recipe, labels: TokenLoss(shifted=True),
)
