"""Classification of texts or pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dslm.recipe.schema import Recipe
from dslm.worker.metrics import Classification
from dslm.worker.tasks.base import (
    Collate,
    Task,
    Tokenizer,
    cross_entropy,
    pad_token,
    padded,
)
from dslm.worker.tasks.pretrain import text_of

_PAIR_FIELD = "text_pair"


class LabelledTextEncoder:
    """A text, perhaps a second (`text_pair`), and a label to `input_ids` and `label`."""

    packs = False

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.labels: dict[str, int] = {}
        self._tokenizer = tokenizer
        self._data = recipe.data

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids`, `token_type_ids` where the tokenizer has them, and `label`."""
        return [self._of(record) for record in records]

    def _of(self, record: dict[str, Any]) -> dict[str, Sequence[int]] | str:
        text, what = text_of(record, self._data.text_field, "data.text_field")
        if what:
            return what
        label = label_of(record, self._data.label_field, self.labels)
        if isinstance(label, str):
            return label
        texts = (text, record[_PAIR_FIELD]) if record.get(_PAIR_FIELD) else (text,)
        found = self._tokenizer(
            *texts,
            truncation=True,
            max_length=self._data.sequence_length,
            return_attention_mask=False,
        )
        return {**found, "label": [label]}


def label_of(record: dict[str, Any], field: str, labels: dict[str, int]) -> int | str:
    """The number of a record's label, a new one for a new name; or what is wrong."""
    label = record.get(field)
    if label is None:
        return f"has no `{field}` (data.label_field)"
    if not isinstance(label, str | int):
        return f"its `{field}` is neither text nor a whole number"
    return labels.setdefault(str(label), len(labels))


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    pad = pad_token(tokenizer)

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = padded([sample["input_ids"] for sample in samples], pad)
        lengths = torch.tensor([[len(sample["input_ids"])] for sample in samples])
        batch = {
            "input_ids": inputs,
            "attention_mask": (torch.arange(inputs.shape[1]) < lengths).long(),
            "labels": torch.tensor([int(sample["label"][0]) for sample in samples]),
        }
        if "token_type_ids" in samples[0]:
            batch["token_type_ids"] = padded([s["token_type_ids"] for s in samples], 0)
        return batch

    return collate


CLASSIFY = Task(
    auto_class="AutoModelForSequenceClassification",
    encoder=LabelledTextEncoder,
    collator=_collator,
    metric=lambda recipe, labels: Classification(labels),
    loss=cross_entropy,
)
