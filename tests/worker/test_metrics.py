"""Metrics agree with those that others compute."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from dslm.worker.metrics import Classification, NextItem, TokenLoss


def test_accuracy_and_f1_are_those_of_scikit_learn_over_any_split_in_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(4, (50,))
    metric = Classification(4)
    parts = zip(logits.split(7), labels.split(7), strict=True)
    values = metric.values(sum(metric.sums(x, y, {}) for x, y in parts))  # type: ignore[arg-type]
    predicted = logits.argmax(-1)
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert values["f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert values["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


def test_next_item_looks_at_the_last_item_of_every_packed_sequence() -> None:
    # two sequences, of 4 and 3 items, and a place of padding
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 0]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]])
    labels = torch.tensor([[-100, 1, 4, 1, -100, 9, 2, -100]])
    logits = torch.zeros(1, 8, 10)
    logits[0, 2] = torch.arange(10.0)  # before the last item, 1: eight are more probable
    logits[0, 5, 2] = 1.0  # before the last item, 2: the most probable
    metric = NextItem(k=9)
    batch = {"input_ids": items, "position_ids": positions}
    values = metric.values(metric.sums(logits, labels, batch))
    assert values["sequences"] == 2
    assert values["hit_rate@9"] == 1.0
    assert values["ndcg@9"] == pytest.approx((1 / math.log2(1 + 9) + 1) / 2)
    few = NextItem(k=8)
    assert few.values(few.sums(logits, labels, batch))["hit_rate@8"] == 0.5


def test_the_loss_is_per_predicted_token() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, :3] = -100
    metric = TokenLoss()
    values = metric.values(metric.sums(logits, labels, {}))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert values["loss"] == pytest.approx(expected.item())
    assert values["perplexity"] == pytest.approx(math.exp(expected.item()))
    assert values["tokens"] == 7
