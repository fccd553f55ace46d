"""Data: every sample once an epoch, whoever reads it; packed documents don't see each other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from dslm.worker.data.order import GlobalBatchSampler, Share
from dslm.worker.data.packing import best_fit, packed_sample, pieces_of

SHARDINGS = ("interleaved", "range", "hash")


def _sampler(world: int, rank: int, sharding: str, **settings: Any) -> GlobalBatchSampler:
    given_: dict[str, Any] = {"count": 37, "seed": 7, "steps": 20, "start_step": 0, **settings}
    return GlobalBatchSampler(
        micro_batch=2,
        accumulation=4 // world,
        share=Share(rank=rank, world_size=world, sharding=sharding),
        **given_,
    )


def _step(samplers: list[GlobalBatchSampler], step: int) -> list[int]:
    return sorted(int(i) for s in samplers for i in s.samples_of_rank(step))


@given(
    world=st.sampled_from([1, 2, 4]), sharding=st.sampled_from(SHARDINGS),
    count=st.integers(1, 60), seed=st.integers(0, 10**6), step=st.integers(0, 30),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_step_has_the_same_samples_on_any_number_of_ranks(
    world: int, sharding: str, count: int, seed: int, step: int
) -> None:
    alone = [_sampler(1, 0, "interleaved", count=count, seed=seed)]
    ranks = [_sampler(world, r, sharding, count=count, seed=seed) for r in range(world)]
    assert _step(ranks, step) == _step(alone, step)
    assert len({len(s.samples_of_rank(step)) for s in ranks}) == 1


@given(
    cuts=st.lists(st.integers(1, 19), max_size=4),
    worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=5, max_size=5),
    sharding=st.sampled_from(SHARDINGS), count=st.integers(8, 60),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_interrupted_anywhere_and_resumed_on_any_world_every_sample_is_seen_once_an_epoch(
    cuts: list[int], worlds: list[int], sharding: str, count: int
) -> None:
    bounds = [0, *sorted(set(cuts)), 20]
    seen: list[int] = []
    for world, start, end in zip(worlds, bounds, bounds[1:], strict=False):
        ranks = [_sampler(world, r, sharding, count=count, start_step=start) for r in range(world)]
        for batches in zip(*(list(s) for s in ranks), strict=True):
            if len(seen) < end * 8:
                seen += [place for batch in batches for place in batch]
    assert len(seen) == 20 * 8
    for epoch in range(len(seen) // count):
        places = sorted(p % count for p in seen if p // count == epoch)
        assert places == list(range(count))


def test_the_only_rank_reads_every_step_in_micro_batches() -> None:
    alone = GlobalBatchSampler(count=5, seed=7, steps=3, micro_batch=2, accumulation=2)
    batches = list(alone)
    assert len(alone) == len(batches) == 6
    assert [len(batch) for batch in batches] == [2] * 6
    steps = [int(place) for step in range(3) for place in alone.samples_of_step(step)]
    assert [place for batch in batches for place in batch] == steps
    assert sorted(place % 5 for place in steps[:10]) == sorted([*range(5)] * 2)


WORLDS = st.sampled_from([2, 4])


@given(WORLDS, st.integers(0, 10**6), st.integers(0, 30))
def test_by_range_a_rank_reads_one_piece_of_a_step_and_in_turn_every_nth(
    world: int, seed: int, step: int
) -> None:
    whole = [int(place) for place in _sampler(1, 0, "range", seed=seed).samples_of_step(step)]
    pieces = [
        _sampler(world, rank, "range", seed=seed).samples_of_rank(step) for rank in range(world)
    ]
    assert [int(place) for piece in pieces for place in piece] == whole
    for rank in range(world):
        mine = _sampler(world, rank, "interleaved", seed=seed).samples_of_rank(step)
        assert [int(place) for place in mine] == whole[rank::world]


@given(WORLDS, st.integers(0, 10**6))
@settings(deadline=None)
def test_by_hash_a_sample_stands_on_the_same_side_of_another_whatever_else_is_in_the_step(
    world: int, seed: int
) -> None:
    count, before = 16, set()
    samplers = [_sampler(world, rank, "hash", count=count, seed=seed) for rank in range(world)]
    for step in range(60):
        ranks = {int(p) % count: r for r, s in enumerate(samplers) for p in s.samples_of_rank(step)}
        before |= {(a, b) for a, b in itertools.permutations(ranks, 2) if ranks[a] < ranks[b]}
    assert len(before) > count
    assert not {(b, a) for a, b in before} & before


DOCUMENTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=40), min_size=1, max_size=60)


def _packed(documents: list[list[int]], length: int) -> list[dict[str, torch.Tensor]]:
    """The samples that documents are packed into, as they go to the model."""
    starts, ends = pieces_of(np.array([len(d) for d in documents]), length)
    flat = np.array([token for document in documents for token in document])
    samples = []
    for members in best_fit(ends - starts, length):
        ids = np.concatenate([flat[starts[i] : ends[i]] for i in members])
        stored = {"input_ids": ids, "lengths": (ends - starts)[members]}
        samples.append(packed_sample(stored, length, pad=0))
    return samples


@given(DOCUMENTS, st.integers(4, 32))
def test_packing_loses_nothing_and_marks_every_document(
    documents: list[list[int]], length: int
) -> None:
    pieces = []
    for sample in _packed(documents, length):
        tokens, positions = sample["input_ids"].tolist(), sample["position_ids"].numpy()
        starts = [*np.flatnonzero(positions == 0), length]
        pieces += [tuple(tokens[a:b]) for a, b in itertools.pairwise(starts)]
        predicted = sample["labels"] != -100
        assert not predicted[positions == 0].any()
    expected = [tuple(d[i : i + length]) for d in documents for i in range(0, len(d), length)]
    assert sorted(piece for piece in pieces if any(piece)) == sorted(expected)


def test_each_piece_goes_where_it_leaves_the_least_space() -> None:
    assert best_fit(np.array([5, 6, 2, 3, 1, 8]), 8) == [[5], [1, 2], [0, 3], [4]]
    assert best_fit(np.array([3, 3, 3]), 8) == [[0, 1], [2]]
    starts, ends = pieces_of(np.array([5, 12, 8]), 8)
    assert starts.tolist() == [0, 5, 13, 17]
    assert ends.tolist() == [5, 13, 17, 25]


def test_only_what_a_mask_names_is_learnt_and_never_a_first_token_or_padding() -> None:
    stored = {
        "input_ids": np.array([11, 12, 13, 21, 22]), "lengths": np.array([3, 2]),
        "mask": np.array([1, 0, 1, 1, 1]),
    }  # fmt: skip
    sample = packed_sample(stored, 7, pad=9)
    assert sample["input_ids"].tolist() == [11, 12, 13, 21, 22, 9, 9]
    assert sample["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert sample["labels"].tolist() == [-100, -100, 13, -100, 22, -100, -100]


def test_packing_is_dense_for_documents_of_real_lengths() -> None:
    lengths = np.random.Generator(np.random.PCG64(1)).lognormal(6, 1.3, 4000).astype(int) + 1
    starts, ends = pieces_of(lengths, 2048)
    samples = best_fit(ends - starts, 2048)
    assert lengths.sum() / (len(samples) * 2048) > 0.995


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3_text", "mistral", "olmo2"]
)
def test_packed_documents_have_the_losses_of_documents_alone(kind: str, attention: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    documents = [torch.randint(1, 100, (n,)).tolist() for n in (11, 7, 13, 4, 9)]

    def token_losses(samples: list[dict[str, torch.Tensor]]) -> list[float]:
        found = []
        for sample in samples:
            with torch.no_grad():
                logits = model(
                    input_ids=sample["input_ids"][None],
                    position_ids=sample["position_ids"][None],
                    use_cache=False,
                ).logits[0, :-1]
            labels = sample["labels"][1:]
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            found += loss[labels != -100].tolist()
        return sorted(found)

    together = token_losses(_packed(documents, 24))
    alone = token_losses([sample for document in documents for sample in _packed([document], 24)])
    assert together == pytest.approx(alone, abs=1e-5)
