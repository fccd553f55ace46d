"""`model.long_context` changes no loss, and memory grows with the samples as it was planned."""

from __future__ import annotations

from typing import Any

import pytest

from dslm.recipe.load import read_resolved
from dslm.run.directory import RunDirectory
from tests.worker.conftest import Train, losses

pytestmark = pytest.mark.slow

FP32 = {"precision": "fp32", "data__eval": 0}
LONG = {"model__long_context": "true"}
Settings = dict[str, Any]
# name: ranks, and what both have
LAYOUTS: dict[str, tuple[int, Settings]] = {
    "stage 0": (1, {"parallel__zero_stage": 0}),
    "stage 2, tied": (
        2, {"parallel__zero_stage": 2, "model__architecture__tie_word_embeddings": "true"},
    ),
    "stage 3": (2, {"parallel__zero_stage": 3}),
    "stage 3, tied": (
        2, {"parallel__zero_stage": 3, "model__architecture__tie_word_embeddings": "true"},
    ),
    "sequence": (2, {"parallel__zero_stage": 2, "parallel__sequence": 2}),
    "tensor": (2, {"parallel__zero_stage": 1, "parallel__tensor": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_long_context_changes_no_loss(trained: Train, name: str) -> None:
    ranks, both = LAYOUTS[name]
    plain = trained(ranks=ranks, **FP32, **both)
    run = trained(ranks=ranks, **FP32, **both, **LONG)
    model = read_resolved(RunDirectory(run).recipe).model
    assert model.tiled_mlp is True
    assert model.tiled_loss is (name != "tensor")
    assert model.activation_checkpointing is True
    assert model.offload_activations is False
    assert len(losses(run)) == 10
    assert losses(run) == pytest.approx(losses(plain), abs=1e-4)
