"""Next-item prediction on sequences of whole numbers, such as a recommender's log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dslm.recipe.schema import Recipe
from dslm.worker.metrics import NextItem
from dslm.worker.tasks.base import Task, Tokenizer
from dslm.worker.tasks.pretrain import stacking

_LARGEST = 2**31 - 1  # that the files of prepared data hold


class ItemEncoder:
    """`items`, a list of item ids, to `input_ids`."""

    packs = True

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.labels: dict[str, int] = {}
        self.notes: Counter[str] = Counter()
        self._items = recipe.model.architecture.get("vocab_size")

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids` of each record."""
        return [self._of(record.get("items")) for record in records]

    def _of(self, items: Any) -> dict[str, Sequence[int]] | str:
        if not isinstance(items, list) or not all(type(item) is int for item in items):
            return "has no `items`, a list of whole numbers"
        if len(items) < 2:
            return "has fewer than two items: there is nothing to predict"
        if min(items) < 0:
            return "has a negative item"
        if max(items) > _LARGEST:
            return f"has an item above {_LARGEST}"
        if self._items is not None and max(items) >= self._items:
            return (
                f"its item {max(items)} is beyond the model's {self._items} items "
                "(model.architecture.vocab_size)"
            )
        return {"input_ids": items}


SEQUENCE = Task(
    auto_class="AutoModelForCausalLM",
    encoder=ItemEncoder,
    collator=stacking,
    metric=lambda recipe, labels: NextItem(),
    tokenizer=False,
)
