"""Ranks that share layers, sequences or experts learn what one rank learns."""

from __future__ import annotations

from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Eval
from dslm.run.history import read_history
from tests.worker.conftest import EXPERTS, Train, losses

pytestmark = pytest.mark.slow

FP32 = {"precision": "fp32"}
# name: ranks, stage, sizes, what else; more of them in `make matrix`
LAYOUTS: dict[str, tuple[int, int, dict[str, int], dict[str, Any]]] = {
    "sequence": (2, 2, {"sequence": 2}, {}),
    "sequence, unpacked": (2, 1, {"sequence": 2}, {"data__packing": "false"}),
    "sequence, stage 3": (4, 3, {"sequence": 2}, {}),
    "tensor": (2, 1, {"tensor": 2}, {}),
    "tensor and data": (4, 1, {"tensor": 2}, {}),
    "expert": (2, 1, {"expert": 2}, EXPERTS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_losses_of_one_rank(trained: Train, name: str) -> None:
    ranks, stage, sizes, more = LAYOUTS[name]
    settings = {**FP32, **more}
    # under stage 3 transformers draws the initial weights in another order than below it
    alone = trained(ranks=1, parallel__zero_stage=3 if stage == 3 else 0, **settings)
    shared = {f"parallel__{key}": size for key, size in sizes.items()}
    together = trained(ranks=ranks, parallel__zero_stage=stage, **shared, **settings)
    assert len(losses(together)) == 10
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert _evaluated(together) == pytest.approx(_evaluated(alone), abs=1e-4)


def _evaluated(run: Any) -> list[float]:
    return [e.loss or 0.0 for e in read_history(RunDirectory(run)).all(Eval)]
