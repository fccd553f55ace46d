"""Metrics of an evaluation: sums that add up over batches and ranks, and numbers made of them."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from dslm.worker.data.packing import IGNORED

Batch = dict[str, torch.Tensor]


class Metric(Protocol):
    """A metric: `size` sums a batch, and `values` the names and numbers made of all sums."""

    size: int
    of_samples: bool  # looks at whole samples, not at single tokens

    def sums(self, logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sums of one batch, float64, shape (size,)."""
        ...

    def values(self, sums: torch.Tensor) -> dict[str, float]:
        """Return the values for people."""
        ...


class TokenLoss:
    """Mean loss per predicted token, in nats, and its exponential, the perplexity."""

    size = 2
    of_samples = False

    def __init__(self, *, shifted: bool = False) -> None:
        self._shifted = shifted  # a token is predicted from those before it (causal models)

    def sums(self, logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Sum of losses, number of tokens."""
        if self._shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return _loss(logits, labels)

    def values(self, sums: torch.Tensor) -> dict[str, float]:
        """`loss`, `perplexity`, `tokens`."""
        loss = _mean(sums[0], sums[1])
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "perplexity": perplexity, "tokens": sums[1].item()}


class Classification:
    """Loss per sample, accuracy, and F1 as the mean over classes (macro)."""

    of_samples = True

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.size = 2 + classes * classes

    def sums(self, logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Sum of losses, number of samples, and the confusion matrix, flat: true × predicted."""
        known = labels != IGNORED
        cells = labels[known] * self._classes + logits[known].argmax(-1)
        confusion = torch.bincount(cells, minlength=self._classes**2).double()
        return torch.cat([_loss(logits, labels), confusion])

    def values(self, sums: torch.Tensor) -> dict[str, float]:
        """`loss`, `accuracy`, `f1`, `samples`.

        A class that is neither there nor predicted doesn't count in F1, as in scikit-learn.
        """
        confusion = sums[2:].reshape(self._classes, self._classes)
        right = confusion.diagonal()
        mentioned = confusion.sum(0) + confusion.sum(1)
        f1 = (2 * right / mentioned)[mentioned > 0]
        return {
            "loss": _mean(sums[0], sums[1]),
            "accuracy": _mean(right.sum(), sums[1]),
            "f1": f1.mean().item() if len(f1) else 0.0,
            "samples": sums[1].item(),
        }


class NextItem(TokenLoss):
    """Loss, and how well the last item of each sequence is predicted from those before it.

    Hit rate@k: the share of sequences whose last item is among the k most probable. NDCG@k: the
    same, discounted by 1 / log2(1 + rank). Both leave one out, over all items (no sampling).
    """

    size = 5
    of_samples = True

    def __init__(self, k: int = 10) -> None:
        super().__init__(shifted=True)
        self._k = k

    def sums(self, logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return those of the loss; hits, discounted gains, sequences."""
        # what follows is the first item of another sequence, or padding: neither is predicted
        following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        last = (labels != IGNORED) & (following == IGNORED)
        wanted = labels[last]
        # the scores that predict a place stand one before it
        scores = logits[last.roll(-1, 1)].float()
        ranks = 1 + (scores > scores.gather(1, wanted[:, None])).sum(1).double()
        hits = ranks <= self._k
        gains = hits / torch.log2(1 + ranks)
        count = torch.tensor(float(len(wanted)), dtype=torch.float64, device=ranks.device)
        return torch.cat(
            [
                super().sums(logits, labels, batch),
                torch.stack([hits.double().sum(), gains.sum(), count]),
            ]
        )

    def values(self, sums: torch.Tensor) -> dict[str, float]:
        """`loss`, `perplexity`, `tokens`, `hit_rate@k`, `ndcg@k`, `sequences`."""
        return {
            **super().values(sums),
            f"hit_rate@{self._k}": _mean(sums[2], sums[4]),
            f"ndcg@{self._k}": _mean(sums[3], sums[4]),
            "sequences": sums[4].item(),
        }


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses: Any = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="sum"
    )
    return torch.stack([losses.double(), (labels != IGNORED).sum().double()])


def _mean(total: torch.Tensor, count: torch.Tensor) -> float:
    return float((total / count.clamp(min=1)).item())
