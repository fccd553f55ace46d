"""Classification of texts or pairs of texts."""

from __future__ import annotations

from collections import Counter
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
        self.notes: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._data = recipe.data

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids`, `token_type_ids` where the tokenizer has them, and `label`."""
        found = [self._labelled(record) for record in records]
        good = [texts for texts in found if not isinstance(texts, str)]
        if not good:
            return [what for what in found if isinstance(what, str)]
        ids = self._tokenizer(
            [texts for texts, _ in good],
            truncation=True,
            max_length=self._data.sequence_length,
            return_attention_mask=False,
        )
        rows = iter(
            {name: column[n] for name, column in ids.items()} | {"label": [label]}
            for n, (_, label) in enumerate(good)
        )
        return [what if isinstance(what, str) else next(rows) for what in found]

    def _labelled(self, record: dict[str, Any]) -> tuple[Any, int] | str:
        """A text, or a pair of texts, and the number of its label."""
        text, what = text_of(record, self._data.text_field, "data.text_field")
        if what:
            return what
        label = label_of(record, self._data.label_field, self.labels)
        if isinstance(label, str):
            return label
        second = record.get(_PAIR_FIELD)
        if second is None:
            return text, label
        if not isinstance(second, str):
            return f"its `{_PAIR_FIELD}` is not text but {type(second).__name__}"
        return (text, second), label


def label_of(record: dict[str, Any], field: str, labels: dict[str, int]) -> int | str:
    """Return the number of a record's label, a new one for a new name; or what is wrong."""
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
