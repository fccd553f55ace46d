"""What a task learns from a sample, in one process: documents one by one, no pack, no padding.

Batches are made here from the stored samples, not by the trainer's collator; of that come the
masked tokens of `mlm`, which are drawn, and images. Tasks of preferences: see preferences.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dslm.recipe.schema import Recipe
from dslm.worker.data.packing import IGNORED

Batch = dict[str, torch.Tensor]
CAUSAL = ("pretrain", "sft", "sequence")
# in a batch: what names words
_WORDS = ("input_ids", "labels", "decoder_input_ids", "KL_input_ids")


class Learnt(ABC):
    """What samples teach: a loss of each, summed over what is counted."""

    # most tasks need nothing of these two
    def begin(self, model: nn.Module) -> None:  # noqa: B027
        """Look at the model as it is before the first step."""

    def prepare(  # noqa: B027
        self, model: nn.Module, samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Compute what the losses of a global batch share; called without gradients."""

    @abstractmethod
    def count(self, sample: Mapping[str, Any]) -> int:
        """How much is learnt of a sample: what its weight in the global batch is."""

    @abstractmethod
    def loss(self, model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        """The loss of a sample, summed."""


class Tokens(Learnt):
    """Cross entropy: of tokens, or of one label."""

    def __init__(self, recipe: Recipe, collate: Callable[..., Any], words: int | None) -> None:
        self._task = recipe.task
        self._collate = collate
        self._words = words
        self._smoothing = smoothing_of(recipe)

    def count(self, sample: Mapping[str, Any]) -> int:
        """Tokens that are predicted."""
        return sum(
            int(((labels[:, 1:] if shifted else labels) != IGNORED).sum())
            for labels, shifted in ((b["labels"], s) for b, s in self._batches(dict(sample)))
        )

    def loss(self, model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        """The sum over its documents."""
        total = torch.zeros(())
        for batch, shifted in self._batches(sample):
            labels = batch.pop("labels")
            logits = model(**_like(model, batch)).logits
            rows = summed_loss(logits, labels, shifted=shifted, smoothing=self._smoothing)
            total = total + rows.sum()
        return total

    def _batches(self, sample: dict[str, Any]) -> Iterator[tuple[Batch, bool]]:
        """A sample as batches of one document each, and whether its labels are to be shifted."""
        for batch, shifted in self._stored(sample):
            yield folded(batch, self._words), shifted

    def _stored(self, sample: dict[str, Any]) -> list[tuple[Batch, bool]]:
        if self._task in CAUSAL:
            return [(batch, True) for batch in documents(sample)]
        if self._task == "seq2seq":
            start = int(self._collate([sample])["decoder_input_ids"][0, 0])
            return [(_pair(sample, start), False)]
        if self._task == "classify":
            return [(_labelled(sample), False)]
        batch = dict(self._collate([sample]))
        if self._task == "mlm":
            return [(each, False) for each in _masked(sample, batch)]
        return [(batch, False)]


def smoothing_of(recipe: Recipe) -> float:
    """Return how much of each label is spread over all (`label_smoothing_factor`)."""
    return float(recipe.training_args.get("label_smoothing_factor") or 0.0)


def folded(batch: Mapping[str, Any], words: int | None) -> dict[str, Any]:
    """Let a batch name only as many words as the reduced model has; None: it has all."""
    return {
        name: torch.where(value < 0, value, value % words)
        if words is not None and name in _WORDS
        else value
        for name, value in batch.items()
    }


def documents(sample: dict[str, Any]) -> list[Batch]:
    """Return the documents of a stored causal sample, one batch each: tokens and labels (1, L)."""
    found, start = [], 0
    tokens = torch.as_tensor(sample["input_ids"], dtype=torch.long)
    learnt = torch.as_tensor(sample["mask"]).bool() if "mask" in sample else None
    for length in [int(n) for n in sample.get("lengths", [len(tokens)])]:
        ids = tokens[start : start + length][None]
        labels = ids.clone()
        if learnt is not None:
            labels[~learnt[start : start + length][None]] = IGNORED
        labels[:, 0] = IGNORED
        found.append({"input_ids": ids, "labels": labels})
        start += length
    return found


def summed_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross entropy of each row of a batch, summed over what is learnt, shape (rows,)."""
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    flat = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="none",
        ignore_index=IGNORED, label_smoothing=smoothing,
    )  # fmt: skip
    return flat.view(len(labels), labels.numel() // len(labels)).sum(1)


def _masked(sample: dict[str, Any], batch: Batch) -> Iterator[Batch]:
    """The documents of a sample with the tokens that were drawn for it, and labels as stored."""
    stored, start = row(sample["input_ids"]), 0
    for length in [int(n) for n in sample.get("lengths", [stored.shape[1]])]:
        part = slice(start, start + length)
        labels = batch["labels"][:, part]
        yield {
            "input_ids": batch["input_ids"][:, part],
            "labels": torch.where(labels == IGNORED, IGNORED, stored[:, part]),
        }
        start += length


def _pair(sample: dict[str, Any], start: int) -> Batch:
    """A text and what becomes of it, with the decoder's inputs one token behind its labels."""
    labels = row(sample["label_ids"])
    behind = torch.cat([torch.tensor([[start]]), labels[:, :-1]], dim=1)
    return {"input_ids": row(sample["input_ids"]), "labels": labels, "decoder_input_ids": behind}


def _labelled(sample: dict[str, Any]) -> Batch:
    batch = {
        "input_ids": row(sample["input_ids"]),
        "labels": torch.tensor([int(sample["label"][0])]),
    }
    if "token_type_ids" in sample:
        batch["token_type_ids"] = row(sample["token_type_ids"])
    return batch


def row(values: Any) -> torch.Tensor:
    """Stored numbers as a batch of one, shape (1, L)."""
    return torch.as_tensor(values, dtype=torch.long)[None]


def _like(model: nn.Module, batch: Batch) -> Batch:
    """A batch whose floats are of a model's number format."""
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {k: v.to(kind) if v.is_floating_point() else v for k, v in batch.items()}
