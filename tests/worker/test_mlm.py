"""Masked language modelling: masks drawn anew each time, documents apart, BERT and RoBERTa."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from dslm.worker.tasks.mlm import MaskingCollator, _first_position, _seed_of
from tests.worker.preparing import recipe_of

LENGTH = 64
SEEDS = [7951976583517103492, 1268893273888632816]  # of another process, Python 3.11


def _collator(tokenizer: PreTrainedTokenizerFast, config: Any, **settings: Any) -> MaskingCollator:
    recipe = recipe_of("mlm", "stdlib", data__sequence_length=LENGTH, **settings)
    return MaskingCollator.of(recipe, tokenizer, config)


def _config(kind: str, attention: str = "sdpa") -> Any:
    return AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=LENGTH + 8, pad_token_id=1,
        attn_implementation=attention,
    )  # fmt: skip


def _sample(documents: list[np.ndarray], place: int = 0) -> dict[str, Any]:
    lengths = np.array([len(document) for document in documents])
    return {"input_ids": np.concatenate(documents), "lengths": lengths, "place": place}


def test_of_the_chosen_tokens_80_percent_are_masked_and_10_are_others(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    collate = _collator(tokenizer, _config("bert"))
    tokens = np.arange(10, 10 + LENGTH)
    batch = collate([_sample([tokens], place) for place in range(2000)])
    chosen = batch["labels"] != -100
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    inputs, original = batch["input_ids"][chosen], batch["labels"][chosen]
    assert (inputs == tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (inputs == original).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(batch["input_ids"][~chosen], torch.tensor(tokens).repeat(2000, 1)[~chosen])


def test_a_sample_is_masked_anew_in_every_epoch_and_alike_when_resumed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    collate = _collator(tokenizer, _config("bert"))
    tokens = np.arange(10, 10 + LENGTH)
    first, again, other = (collate([_sample([tokens], place)]) for place in (3, 3, 1003))
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["labels"], other["labels"])


def test_the_masks_of_a_sample_are_the_same_in_every_version_of_python() -> None:
    assert [_seed_of(42, place) for place in (0, 1)] == SEEDS
    assert len({_seed_of(seed, place) for seed in range(30) for place in range(30)}) == 900


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_read_as_documents_alone(
    kind: str, attention: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    config = _config(kind)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention).eval()
    collate = _collator(tokenizer, config)
    documents = [np.arange(10, 10 + size) for size in (20, 9, 30)]

    def logits(*parts: np.ndarray) -> torch.Tensor:
        batch = collate([_sample(list(parts))])
        batch["input_ids"][0, : sum(map(len, parts))] = torch.tensor(np.concatenate(parts))
        del batch["labels"]
        with torch.no_grad():
            return model(**batch).logits[0, : sum(map(len, parts))]

    together = logits(*documents)
    alone = torch.cat([logits(document) for document in documents])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet"])
def test_positions_are_those_that_the_model_counts_itself(
    kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = _config(kind, "eager")
    model = AutoModelForMaskedLM.from_config(config).eval()
    batch = _collator(tokenizer, config)([_sample([np.arange(10, 10 + LENGTH)])])
    positions = batch["position_ids"]
    with torch.no_grad():
        own = model(input_ids=batch["input_ids"]).logits
        given = model(input_ids=batch["input_ids"], position_ids=positions).logits
    assert positions[0, 0] == 2
    torch.testing.assert_close(own, given)


@pytest.mark.parametrize("kind", ["bert", "modernvbert"])  # the second names no padding
def test_other_models_count_from_zero(kind: str) -> None:
    assert _first_position(AutoConfig.for_model(kind)) == 0


@pytest.mark.parametrize("kind", ["bert", "deberta", "deberta-v2"])
def test_without_packs_any_masked_model_is_told_which_tokens_are_there(
    kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    config = _config(kind, "eager")
    model = AutoModelForMaskedLM.from_config(config).eval()
    collate = _collator(tokenizer, config, data__packing=False)
    batch = collate([_sample([np.arange(10, 50)])])
    assert batch["attention_mask"].tolist() == [[1] * 40 + [0] * (LENGTH - 40)]
    accepted = inspect.signature(model.forward).parameters
    given = {name: value for name, value in batch.items() if name in accepted and name != "labels"}
    with torch.no_grad():
        padded = model(**given).logits[:, :40]
        alone = model(**{name: value[:, :40] for name, value in given.items()}).logits
    torch.testing.assert_close(padded, alone)
