"""Attention within documents: what each document gives alone, without a mask; a leak is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dslm.recipe.load import load_recipe
from dslm.worker.layout import attention
from dslm.worker.layout.attention import DOCUMENTS, attends_plainly, use_documents, watch
from dslm.worker.layout.documents import Documents

SIZES = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": 128, "head_dim": 8,
    "sliding_window": 7, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
PLAIN = (
    "llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "phi", "phi3", "gemma",
    "gemma3_text", "olmo2", "olmo3", "qwen3_moe", "mixtral", "opt", "cohere", "starcoder2",
    "stablelm", "granite", "glm4", "ministral", "exaone4", "nemotron", "biogpt", "gpt_bigcode",
)  # fmt: skip
OTHER = ("gemma2", "gpt_oss", "bloom", "mpt", "llama4_text", "qwen3_next")
PACKS = ((5, 20, 1, 6), (32,))


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES)
    return AutoModelForCausalLM.from_config(config).eval()


def _logits(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: Any = model(input_ids=ids, position_ids=positions, use_cache=False)
    logits: torch.Tensor = found.logits
    return logits


def _alone(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits of packs whose documents went through the model one by one."""
    rows = []
    for row, lengths in zip(ids, PACKS, strict=True):
        parts = row.split(list(lengths))
        rows.append(
            torch.cat([_logits(model, p[None], torch.arange(len(p))[None])[0] for p in parts])
        )
    return torch.stack(rows)


def _packed() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 99, (len(PACKS), sum(PACKS[0])), generator=torch.manual_seed(1))
    positions = [torch.cat([torch.arange(n) for n in lengths]) for lengths in PACKS]
    return ids, torch.stack(positions)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_pack_gives_what_its_documents_give_alone(kind: str) -> None:
    model = _model(kind)
    ids, positions = _packed()
    expected = _alone(model, ids)
    assert attends_plainly(model)
    model.set_attn_implementation(DOCUMENTS)
    watch(model)
    torch.testing.assert_close(_logits(model, ids, positions), expected, atol=1e-5, rtol=0)


def test_adapters_change_nothing_of_it() -> None:
    from peft import LoraConfig, get_peft_model

    model = _model("llama")
    ids, positions = _packed()
    expected = _alone(model, ids)
    recipe = load_recipe("quickstart", ["task=sft"]).recipe
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert use_documents(adapted, recipe)
    assert model.config._attn_implementation == DOCUMENTS
    torch.testing.assert_close(_logits(adapted, ids, positions), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", OTHER)
def test_a_model_with_another_attention_keeps_its_own(kind: str) -> None:
    assert not attends_plainly(_model(kind))


def test_a_planted_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above sees it when one document's first tokens look into the one before."""
    model = _model("llama")
    ids, positions = _packed()
    expected = _alone(model, ids)
    model.set_attn_implementation(DOCUMENTS)
    watch(model)
    real = Documents.of

    def leaking(positions: torch.Tensor) -> Documents:
        joined = positions.clone()
        joined[0, 5] = joined[0, 4] + 1  # the second document goes on where the first ended
        joined[0, 6] = joined[0, 5] + 1
        return real(joined)

    monkeypatch.setattr(Documents, "of", staticmethod(leaking))
    wrong = (_logits(model, ids, positions) - expected).abs().amax((-1,))
    assert wrong.max() > 1e-3
    assert wrong[1].max() < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_stay_within_a_document(dropout: float) -> None:
    _, positions = _packed()
    attention._current[:] = [Documents.of(positions)]
    query, key, value = (
        torch.randn(2, heads, 32, 8, requires_grad=True, generator=torch.manual_seed(heads))
        for heads in (4, 2, 2)
    )
    found, _ = attention.attend(torch.nn.Module(), query, key, value, dropout=dropout)
    found[0, 5:25].square().sum().backward()
    for states in (query, key, value):
        assert states.grad is not None
        outside = torch.cat([states.grad[0, :, :5], states.grad[0, :, 25:]], dim=1)
        assert not outside.any()
        assert not states.grad[1].any()
        assert states.grad[0, :, 5:25].any()


def test_documents_of_one_length_are_computed_together() -> None:
    lengths = [3, 4, 4, 3, 9, 1]
    found = Documents.of(torch.cat([torch.arange(n) for n in lengths])[None])
    assert found.lengths.tolist() == lengths
    assert sorted(bucket.tokens.shape[0] for bucket in found.buckets) == [1, 1, 4]
    assert found.cumulative.tolist() == [0, 3, 7, 11, 14, 23, 24]
