"""Tiles of tokens change no loss and no gradient; what can't be in tiles is known, by trying it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dslm.errors import RecipeError
from dslm.worker.data.packing import IGNORED
from dslm.worker.layout import tiles
from dslm.worker.layout.tiles import mlps_of, summed_in_tiles, tile_loss, tile_mlps
from dslm.worker.layout.tiles_proof import LOSS, MLP, not_in_tiles
from dslm.worker.metrics import TokenLoss
from tests.worker.test_documents import SIZES

CAUSAL = "AutoModelForCausalLM"
BOTH = (
    "llama", "qwen2", "qwen3", "mistral", "gpt_neox", "phi3", "gemma", "olmo2", "stablelm", "glm4",
    "starcoder2", "nemotron",
)  # fmt: skip
NO_MLP = ("opt", "bloom", "mixtral")  # none, one with two inputs, experts
SCALED = ("cohere", "granite")  # logits are changed behind the head


def _model(kind: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **more})
    return AutoModelForCausalLM.from_config(config)


def _learnt(model: PreTrainedModel, **settings: Any) -> tuple[float, list[torch.Tensor]]:
    ids = torch.randint(1, 99, (2, 30), generator=torch.manual_seed(1))
    labels = ids.clone()
    labels[0, :7] = IGNORED
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels, use_cache=False, **settings).loss
    (3 * loss).backward()  # as a loss scale, or a number of ranks, multiplies it
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(loss), gradients


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few tokens: the last one is shorter."""
    monkeypatch.setattr(tiles, "rows_of_loss", lambda vocabulary: 7)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", BOTH)
def test_a_model_in_tiles_learns_what_it_learns_whole(kind: str, tied: bool) -> None:
    model = _model(kind, tie_word_embeddings=tied)
    counted = torch.tensor(11)
    loss, gradients = _learnt(model, num_items_in_batch=counted)
    tile_mlps(model)
    tile_loss(model)
    found, again = _learnt(model, num_items_in_batch=counted)
    assert found == pytest.approx(loss, abs=1e-5)
    assert len(again) == len(gradients)
    for mine, true in zip(again, gradients, strict=True):
        torch.testing.assert_close(mine, true, atol=1e-5, rtol=1e-4)


def test_no_more_tokens_are_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("llama")
    seen: list[int] = []
    head: Any = model.get_output_embeddings()
    whole = head.forward

    def noted(states: torch.Tensor) -> torch.Tensor:
        seen.append(states.shape[-2])
        found: torch.Tensor = whole(states)
        return found

    monkeypatch.setattr(head, "forward", noted)
    down: Any = model.get_submodule("model.layers.0.mlp.down_proj")

    def note(module: object, given: object, output: torch.Tensor) -> None:
        seen.append(output.shape[-2])

    down.register_forward_hook(note)
    tile_mlps(model)
    tile_loss(model)
    _learnt(model)
    assert max(seen) <= SIZES["hidden_size"]
    assert 7 in seen


def test_a_pass_without_labels_gives_logits() -> None:
    model = _model("llama")
    ids = torch.arange(1, 20)[None]
    before = model(input_ids=ids).logits
    tile_loss(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert model(input_ids=ids, labels=ids).get("logits") is None


def test_an_evaluation_has_no_more_logits_than_a_tile() -> None:
    model = _model("llama")
    ids = torch.randint(1, 99, (2, 30))
    labels = ids.clone()
    labels[1, 3:] = IGNORED
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert summed_in_tiles(model, {"input_ids": ids}, labels, None) is None
        tile_loss(model)
        found = summed_in_tiles(model, {"input_ids": ids}, labels, None)
    true = TokenLoss(shifted=True).sums(logits, labels, {})
    # sums in fp64 of logits in fp32, which products of other shapes round otherwise
    torch.testing.assert_close(found, true, rtol=1e-6, atol=0.0)


def test_adapters_learn_the_same_in_tiles() -> None:
    from peft import LoraConfig, get_peft_model

    base = _model("llama")
    torch.manual_seed(2)
    config = LoraConfig(target_modules=["down_proj", "lm_head"], init_lora_weights=False)
    model: Any = get_peft_model(base, config)
    loss, gradients = _learnt(model)
    tile_mlps(model)
    tile_loss(model)
    found, again = _learnt(model)
    assert found == pytest.approx(loss, abs=1e-5)
    assert len(again) == len(gradients) == 6
    for mine, true in zip(again, gradients, strict=True):
        torch.testing.assert_close(mine, true, atol=1e-5, rtol=1e-4)


def test_what_drops_out_is_not_computed_again() -> None:
    assert mlps_of(_model("gpt2", resid_pdrop=0.0))
    assert not mlps_of(_model("gpt2", resid_pdrop=0.1))
    with pytest.raises(RecipeError, match="gpt2"):
        tile_mlps(_model("gpt2", resid_pdrop=0.1))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_what_can_be_in_tiles_is_found_to_be(kind: str) -> None:
    assert not_in_tiles(AutoConfig.for_model(kind), CAUSAL, (MLP, LOSS)) == {}


@pytest.mark.parametrize("kind", NO_MLP)
def test_a_model_without_such_an_mlp_is_named(kind: str) -> None:
    assert kind in not_in_tiles(AutoConfig.for_model(kind), CAUSAL, (MLP,))[MLP]


@pytest.mark.parametrize("kind", SCALED)
def test_logits_that_are_changed_behind_the_head_are_found(kind: str) -> None:
    assert (
        "another loss"
        in not_in_tiles(
            AutoConfig.for_model(kind, logit_scale=0.5, logits_scaling=3.0), CAUSAL, (LOSS,)
        )[LOSS]
    )
