"""The interface of a task: records to samples, samples to a batch, a batch to loss and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from dslm.recipe.schema import Recipe
from dslm.worker.data.encode_parts import Encoder
from dslm.worker.data.order import GlobalBatchSampler
from dslm.worker.data.packing import IGNORED
from dslm.worker.data.store import Samples
from dslm.worker.layout.ranks import Layout
from dslm.worker.metrics import Metric, TokenLoss
from dslm.worker.ranks import Rank

Collate = Callable[[list[Any]], dict[str, torch.Tensor]]
Tokenizer: TypeAlias = PreTrainedTokenizerBase | None


class Measure(Protocol):
    """An evaluation on all ranks, which all get the same numbers; the model is in eval mode."""

    def __call__(
        self,
        trainer: Any,
        samples: Any,
        collate: Collate,
        layout: Layout,
        *,
        micro_batch: int,
        on_batch: Callable[[], None],
    ) -> dict[str, float]:
        """Return the numbers of these samples; `on_batch` is called after each forward pass."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One kind of training; adding one means one of these in a module of its own.

    `trainer` gives the Trainer class and its arguments' class, where they are not transformers'
    own, `arguments` what it is given beside the recipe's; `loss` None is the model's own, or the
    trainer's. An evaluation is `metric`, of logits and labels, or `measure`, which asks the
    trainer. `view` is what a Trainer reads of the samples, `config` what the model's config has,
    `sampler` makes micro batches, and `made_with` is what a Trainer is made with beside the usual:
    of the recipe, the rank (None: it trains nothing), the layout and the first optimizer step.
    """

    auto_class: str
    encoder: Callable[[Recipe, Any], Encoder]
    collator: Callable[[Recipe, Any, Any], Collate]
    metric: Callable[[Recipe, int], Metric] = lambda recipe, labels: TokenLoss()
    measure: Measure | None = None
    loss: Callable[..., Any] | None = None
    tokenizer: bool = True
    trainer: Callable[[], tuple[type, type]] | None = None
    arguments: Callable[[Recipe], Mapping[str, Any]] = lambda recipe: {}
    config: Mapping[str, Any] = field(default_factory=dict)
    view: Callable[[Samples], Any] = lambda samples: samples
    sampler: Callable[[Recipe], Callable[..., GlobalBatchSampler]] = lambda r: GlobalBatchSampler
    made_with: Callable[[Recipe, Rank | None, Layout, int], Mapping[str, Any]] = (
        lambda recipe, rank, layout, step: {}
    )


class TextsEncoder:
    """The base of encoders for tasks with several texts a record."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.labels: dict[str, int] = {}
        self._tokenizer = tokenizer
        self._length = recipe.data.sequence_length
        self._answers = recipe.data.answers
        self.notes: Counter[str] = Counter()


def padded(lists: list[Any], padding: int) -> torch.Tensor:
    """Sequences of numbers as one tensor (B, longest), padded at the end."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.as_tensor(values, dtype=torch.long) for values in lists],
        batch_first=True,
        padding_value=padding,
    )


def pad_token(tokenizer: Tokenizer) -> int:
    """Return the id of the padding token; 0 where there is none (it is masked anyway)."""
    found = tokenizer.pad_token_id if tokenizer is not None else None
    return int(found) if found is not None else 0


def cross_entropy(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy of logits (…, C) and labels (…), over their number in the global batch."""
    losses = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, -2).float(), labels.flatten(), reduction="sum"
    )
    count = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum()
    return losses / count
