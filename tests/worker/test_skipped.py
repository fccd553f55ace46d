"""Batches that are left out move those behind them forward, and nothing else."""

from __future__ import annotations

from dslm.worker.data.order import GlobalBatchSampler


def _sampler(*skipped: int) -> GlobalBatchSampler:
    return GlobalBatchSampler(
        count=40, seed=1, steps=10, micro_batch=2, accumulation=2, skipped=skipped
    )


def test_a_step_takes_the_next_batch_that_is_not_left_out() -> None:
    assert [_sampler().batch_of(step) for step in range(5)] == [0, 1, 2, 3, 4]
    assert [_sampler(4, 1, 2).batch_of(step) for step in range(5)] == [0, 3, 5, 6, 7]


def test_the_samples_before_a_batch_that_is_left_out_stay_as_they_are() -> None:
    whole, cut = _sampler(), _sampler(3)
    assert [list(cut.samples_of_step(step)) for step in range(5)] == [
        list(whole.samples_of_step(step)) for step in (0, 1, 2, 4, 5)
    ]
