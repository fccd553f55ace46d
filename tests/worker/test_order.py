"""The order of samples is frozen: a run that is resumed goes on in the order that it began in.

What fails here would let runs that were begun with an earlier dslm see samples twice, or never.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dslm.worker.data.order import GlobalBatchSampler, Share, epoch_order
from dslm.worker.data.packing import best_fit, packed_sample, pieces_of


@pytest.mark.parametrize(
    ("count", "seed", "epoch", "order"),
    [
        (8, 7, 0, [0, 6, 7, 2, 4, 5, 1, 3]),
        (8, 7, 1, [6, 3, 1, 0, 2, 4, 7, 5]),
        (8, 8, 0, [3, 7, 0, 5, 6, 1, 2, 4]),
        (12, 0, 3, [9, 2, 8, 3, 7, 4, 6, 11, 1, 5, 0, 10]),
    ],
)
def test_an_epoch_has_the_order_that_it_always_had(
    count: int, seed: int, epoch: int, order: list[int]
) -> None:
    assert epoch_order(count, seed, epoch).tolist() == order


BY_HASH = [0, 13, 5, 10, 2, 15, 7, 12, 4, 9, 1, 14, 6, 11, 3, 8]


@pytest.mark.parametrize(
    ("sharding", "ranks"),
    [
        ("interleaved", [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]),
        ("range", [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]),
        ("hash", [BY_HASH[:4], BY_HASH[4:8], BY_HASH[8:12], BY_HASH[12:]]),
    ],
)
def test_ranks_share_a_step_as_they_always_did(sharding: str, ranks: list[list[int]]) -> None:
    step = np.arange(16)
    shares = [Share(rank=r, world_size=4, sharding=sharding) for r in range(4)]
    assert [share.of(step, 16).tolist() for share in shares] == ranks


def test_samples_are_shared_in_turn_by_one_rank_unless_something_else_is_said() -> None:
    assert Share() == Share(rank=0, world_size=1, sharding="interleaved")


def test_the_hash_of_a_large_index_is_the_one_that_it_always_was() -> None:
    indices = [
        94172255183, 260375905581, 881010591534, 640093927902, 103495536650, 476228107093,
        526722472607, 175634794051, 807676119473, 124983707656, 430159944563, 568161839331,
    ]  # fmt: skip
    assert Share(sharding="hash").of(np.array(indices), 2**41).tolist() == [
        94172255183, 807676119473, 124983707656, 175634794051, 568161839331, 476228107093,
        526722472607, 260375905581, 640093927902, 881010591534, 430159944563, 103495536650,
    ]  # fmt: skip


def test_a_sample_that_is_twice_in_a_step_keeps_its_order_by_hash() -> None:
    """It has one hash in both epochs; so many that no unstable sort would keep them all."""
    count = 4096
    twice = np.concatenate([np.arange(count)[::-1] + count, np.arange(count)])
    first, second = Share(sharding="hash").of(twice, count).reshape(-1, 2).T
    assert (first == second + count).all()


def test_ranks_share_the_steps_of_an_epoch_by_hash_as_they_always_did() -> None:
    ranks = [
        GlobalBatchSampler(
            count=16, seed=3, steps=4, micro_batch=4, accumulation=1,
            share=Share(rank=rank, world_size=2, sharding="hash"),
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [[rank.samples_of_rank(step).tolist() for step in (1, 2)] for rank in ranks] == [
        [[0, 13, 5, 7], [16, 26, 18, 31]], [[4, 6, 3, 8], [23, 20, 25, 30]],
    ]  # fmt: skip


STEPS = [
    [4, 2, 1, 3], [0, 6, 9, 5], [7, 8, 14, 10], [11, 12, 13, 16], [18, 19, 17, 15],
    [23, 22, 24, 20], [21, 25, 27, 29], [26, 28, 31, 34],
]  # fmt: skip


def test_steps_hold_the_samples_that_they_always_held() -> None:
    sampler = GlobalBatchSampler(count=5, seed=3, steps=8, micro_batch=1, accumulation=4)
    assert [sampler.samples_of_step(step).tolist() for step in range(8)] == STEPS
    # asked for in any order, they are the same
    assert [sampler.samples_of_step(step).tolist() for step in (6, 2, 7)] == [
        STEPS[6], STEPS[2], STEPS[7],
    ]  # fmt: skip
    assert len(sampler) == 32
    assert (sampler.start_step, sampler.share) == (0, Share())
    assert list(sampler) == [[place] for step in STEPS for place in step]


def test_a_rank_reads_its_micro_batches_from_where_the_run_goes_on() -> None:
    ranks = [
        GlobalBatchSampler(
            count=5, seed=3, steps=5, micro_batch=2, accumulation=1, start_step=2,
            share=Share(rank=rank, world_size=2),
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [list(rank) for rank in ranks] == [
        [[7, 14], [11, 13], [18, 17]], [[8, 10], [12, 16], [19, 15]],
    ]  # fmt: skip
    assert [len(rank) for rank in ranks] == [5, 5]
    assert [rank.global_batch for rank in ranks] == [4, 4]


def test_batches_that_are_left_out_move_the_steps_behind_them() -> None:
    sampler = GlobalBatchSampler(
        count=5, seed=3, steps=5, micro_batch=1, accumulation=4, skipped=(3, 0, 4)
    )
    assert [sampler.batch_of(step) for step in range(4)] == [1, 2, 5, 6]
    assert [sampler.samples_of_step(step).tolist() for step in range(3)] == [
        STEPS[1], STEPS[2], STEPS[5],
    ]  # fmt: skip


def test_documents_are_cut_where_they_always_were() -> None:
    starts, ends = pieces_of(np.array([5, 12, 8, 1, 17]), 8)
    assert starts.tolist() == [0, 5, 13, 17, 25, 26, 34, 42]
    assert ends.tolist() == [5, 13, 17, 25, 26, 34, 42, 43]


@pytest.mark.parametrize(
    ("sizes", "samples"),
    [
        ([5, 6, 2, 3, 1, 8], [[5], [1, 2], [0, 3], [4]]),
        ([3, 3, 3], [[0, 1], [2]]),
        ([8, 8], [[0], [1]]),
        ([4, 4, 4, 4], [[0, 1], [2, 3]]),
        ([5, 5, 4, 3, 3, 2, 2], [[0, 4], [1, 3], [2, 5, 6]]),
        ([1] * 9, [[*range(8)], [8]]),
        ([7, 6, 1, 1, 2], [[0, 2], [1, 4], [3]]),
        ([6, 6, 1, 1, 1, 1], [[0, 4, 5], [1, 2, 3]]),
        ([], []),
    ],
)
def test_pieces_go_together_as_they_always_did(sizes: list[int], samples: list[list[int]]) -> None:
    assert best_fit(np.array(sizes, dtype=np.int64), 8) == samples


def test_pieces_of_one_size_keep_their_order() -> None:
    """So many that no unstable sort would keep them all."""
    count = 2000
    samples = best_fit(np.tile([3, 5], count), 8)
    assert samples == [[2 * k + 1, 2 * (count - 1 - k)] for k in range(count)]


def test_a_packed_sample_is_of_whole_numbers_without_a_mask_as_with_one() -> None:
    stored = {"input_ids": np.array([11, 12, 13, 21, 22]), "lengths": np.array([3, 2])}
    sample = packed_sample(stored, 8, pad=9)
    assert {name: values.tolist() for name, values in sample.items()} == {
        "input_ids": [11, 12, 13, 21, 22, 9, 9, 9],
        "position_ids": [0, 1, 2, 0, 1, 0, 1, 2],
        "labels": [-100, 12, 13, -100, 22, -100, -100, -100],
    }
    assert {values.dtype for values in sample.values()} == {torch.int64}
    full = packed_sample({**stored, "mask": np.array([1, 1, 0, 1, 1])}, 5, pad=9)
    assert full["labels"].tolist() == [-100, 12, -100, -100, 22]
    assert {values.dtype for values in full.values()} == {torch.int64}
