"""Sharding the work over K ranks doesn't change the result: the promise that the design makes."""

from __future__ import annotations

import pytest

from tests.worker.conftest import EXPERTS, Train, losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "offload"),
    [
        (0, "none"),
        (1, "none"),
        (2, "none"),
        (3, "none"),
        (2, "optimizer"),
        (3, "optimizer"),
        (3, "all"),
    ],
)
def test_two_ranks_give_the_losses_of_one(trained: Train, stage: int, offload: str) -> None:
    # under stage 3 transformers draws the initial weights in another order than below it
    alone = trained(ranks=1, parallel__zero_stage=3 if stage == 3 else 0)
    together = trained(ranks=2, parallel__zero_stage=stage, parallel__offload=offload)
    expected, found = losses(alone), losses(together)
    assert len(found) == 10
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sharding", ["range", "hash"])
def test_who_reads_which_sample_does_not_matter(trained: Train, sharding: str) -> None:
    alone = trained(ranks=1, parallel__zero_stage=0)
    together = trained(ranks=2, parallel__zero_stage=1, data__sharding=sharding)
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)


def test_a_mixture_of_experts_is_no_exception(trained: Train) -> None:
    together, alone = (trained(ranks=ranks, **EXPERTS, parallel__zero_stage=3) for ranks in (2, 1))
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
