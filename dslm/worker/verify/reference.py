"""One process in fp32: loss and gradient of a global batch, document by document.

No ZeRO, no recomputation, no fused kernels, no packing, no padding. Batches are made here from the
stored samples, not by the trainer's collator; of that come the masked tokens of `mlm`, which are
drawn, and images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dslm.worker.data.packing import IGNORED

Tensors = dict[str, torch.Tensor]
_ROUNDED = 2.0**-7  # of a value: what a copy in bf16 may be off by
CAUSAL = ("pretrain", "sft", "sequence")
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a global batch gives: the loss of each sample as sum and count, and all gradients."""

    losses: dict[int, tuple[float, int]]  # by place
    gradients: Tensors

    @property
    def loss(self) -> float:
        """The mean over all that is learnt."""
        total = sum(count for _, count in self.losses.values())
        return sum(value for value, _ in self.losses.values()) / max(total, 1)

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return float(
            torch.stack([g.double().pow(2).sum() for g in self.gradients.values()]).sum().sqrt()
        )


class Reference:
    """A model in one process; `precision` is fp32, or the recipe's to measure its noise."""

    def __init__(
        self, model: nn.Module, task: str, collate: Callable[..., Any], precision: torch.dtype
    ) -> None:
        self.model = model.to(precision)
        self.model.train()
        self._task = task
        self._collate = collate
        self._precision = precision

    def in_precision(self, model: nn.Module, precision: torch.dtype) -> Reference:
        """The same computation by another model, in another number format."""
        return Reference(model, self._task, self._collate, precision)

    def take(self, parameters: Tensors) -> list[str]:
        """Take on the values of parameters; names that this model doesn't have."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in parameters.items():
                if name in own and own[name].shape == value.shape:
                    own[name].copy_(value.to(self._precision))
        return sorted(set(parameters) - set(own))

    def unlike(self, parameters: Tensors) -> list[str]:
        """Name the parameters whose values are others than this model's own."""
        own = dict(self.model.named_parameters())
        return [
            name
            for name, value in parameters.items()
            if name in own
            and own[name].shape == value.shape
            and not torch.allclose(own[name].detach().float(), value, rtol=_ROUNDED, atol=1e-6)
        ]

    def trained(self) -> list[str]:
        """Names of the parameters that get a gradient."""
        return [name for name, p in self.model.named_parameters() if p.requires_grad]

    def find(self, samples: Sequence[dict[str, Any]], micro_batch: int = 1) -> Found:
        """Loss and gradients of a global batch: the mean over its learnt tokens (or samples).

        Args:
            samples: as they are stored.
            micro_batch: samples whose gradients are summed in the model's own number format.
        """
        counts = {int(s["place"]): sum(c for _, c in self._counted(s)) for s in samples}
        total = max(sum(counts.values()), 1)
        sums: Tensors = {}
        losses: dict[int, tuple[float, int]] = {}
        for start in range(0, len(samples), micro_batch):
            self.model.zero_grad(set_to_none=True)
            for sample in samples[start : start + micro_batch]:
                place = int(sample["place"])
                losses[place] = (self._backward(sample, total), counts[place])
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    found = parameter.grad.detach().float()
                    sums[name] = sums[name] + found if name in sums else found.clone()
        self.model.zero_grad(set_to_none=True)
        return Found(losses=losses, gradients=sums)

    def _backward(self, sample: dict[str, Any], total: int) -> float:
        loss = 0.0
        for batch, shifted in self._batches(sample):
            labels = batch.pop("labels")
            logits = self.model(**batch).logits
            value = summed_loss(logits, labels, shifted=shifted).sum()
            if bool((labels != IGNORED).any()):
                (value / total).backward()
            loss += float(value)
        return loss

    def _counted(self, sample: dict[str, Any]) -> Iterable[tuple[dict[str, Any], int]]:
        for batch, shifted in self._batches(sample):
            labels = batch["labels"]
            yield batch, int(((labels[:, 1:] if shifted else labels) != IGNORED).sum())

    def _batches(self, sample: dict[str, Any]) -> list[tuple[Batch, bool]]:
        """A sample as batches of one document each, and whether its labels are to be shifted."""
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
        return [({k: self._cast(v) for k, v in batch.items()}, False)]

    def _cast(self, value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self._precision) if floats else value


def _masked(sample: dict[str, Any], batch: Batch) -> Iterator[Batch]:
    """The documents of a sample with the tokens that were drawn for it, and labels as stored."""
    stored, start = _row(sample["input_ids"]), 0
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
    labels = _row(sample["label_ids"])
    behind = torch.cat([torch.tensor([[start]]), labels[:, :-1]], dim=1)
    return {"input_ids": _row(sample["input_ids"]), "labels": labels, "decoder_input_ids": behind}


def _labelled(sample: dict[str, Any]) -> Batch:
    batch = {
        "input_ids": _row(sample["input_ids"]),
        "labels": torch.tensor([int(sample["label"][0])]),
    }
    if "token_type_ids" in sample:
        batch["token_type_ids"] = _row(sample["token_type_ids"])
    return batch


def _row(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.long)[None]


def documents(sample: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
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


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool) -> torch.Tensor:
    """Cross entropy of each row of a batch, summed over what is learnt, shape (rows,)."""
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits.float()
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return flat.view(labels.shape[0], -1).sum(1)
