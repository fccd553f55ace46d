"""Experts that a model chooses otherwise, because numbers are rounded another way, are no fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dslm.recipe.load import load_recipe
from dslm.worker.verify.choices import Choices, off_by
from dslm.worker.verify.compare import Step, compare_gradients
from dslm.worker.verify.learnt import Tokens
from dslm.worker.verify.noise import Measuring, Noise
from dslm.worker.verify.reference import Found, Reference

SCORES = torch.tensor([[0.50, 0.49, -torch.inf], [0.90, 0.10, 0.00]])
SMALL: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"moe_intermediate_size": 32, "head_dim": 16, "num_experts": 4},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {
        "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip


def test_a_token_goes_elsewhere_only_where_its_scores_are_nearly_even() -> None:
    gone = set()
    for seed in range(20):
        with Choices(off={(3, 0): 0.01, (3, 1): 0.01}, seed=seed) as choices:
            choices.of(3)
            weights, experts = torch.topk(SCORES, 1, dim=-1)
            first = SCORES.argmax(-1)
        assert torch.equal(weights, SCORES.gather(-1, experts))  # weighed by the true scores
        assert [int(experts[1]), int(first[1])] == [0, 0]
        gone |= {int(experts[0]), int(first[0])}
    assert gone == {0, 1}
    with Choices(like=choices) as again:
        again.of(3)
        assert torch.equal(SCORES.neg().topk(1).indices, experts)
        assert torch.equal(SCORES.neg().argmax(dim=-1), first)
    assert off_by(choices, again, torch.float32)[3, 0] > 0.5


def test_what_other_choices_turn_hides_no_factor() -> None:
    wanted, across = torch.tensor([3.0, 4.0]), torch.tensor([-4.0, 3.0])
    noise = Noise(chosen={"w": 0.5}, stretched={"w": 0.05})
    for found, named in (
        (wanted + 0.4 * across, False),
        (1.04 * wanted + 0.3 * across, False),
        (1.30 * wanted, True),
        (0.80 * wanted + 0.3 * across, True),
        (wanted + 0.6 * across, True),
    ):
        exact = Found(losses={}, gradients={"w": wanted})
        assert bool(compare_gradients(_step({"w": found}), 1, exact, noise, "bf16")) == named


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_chosen_otherwise_are_let_alone_and_a_scaled_one_is_not(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **MIXTURES[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    half = AutoModelForCausalLM.from_config(config, dtype=torch.float32).bfloat16()
    recipe = load_recipe("quickstart", []).recipe
    reference, own = (Reference(each, Tokens(recipe, dict, None)) for each in (model, half))
    batch = [
        {"place": place, "input_ids": torch.randint(0, 256, (48,)).tolist()} for place in range(4)
    ]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    measuring, exact = Measuring(reference, own, 2), reference.find(batch)
    noise, closer = (ask(before, batch, exact) for ask in (measuring.noise, measuring.closer))
    own_choices = own.find(batch, choices=Choices(exact.choices)).choices
    off = off_by(exact.choices, own_choices, torch.bfloat16)
    turned = 0
    for seed in range(100, 103):  # layouts whose scores are off by as much as the format's
        made = reference.find(batch, choices=Choices(off=off, seed=seed)).gradients
        turned += bool(_named(made, exact, noise))
        assert not _named(made, exact, closer)
        made[_of_experts(made)] *= 2
        assert _named(made, exact, closer) == [_of_experts(made)]
    assert turned  # else nothing was shown


def _of_experts(gradients: dict[str, torch.Tensor]) -> str:
    return next(name for name in gradients if "experts.down_proj" in name)


def _named(made: dict[str, torch.Tensor], exact: Found, noise: Noise) -> list[str]:
    return [each.name for each in compare_gradients(_step(made), 1, exact, noise, "bf16")]


def _step(gradients: dict[str, torch.Tensor]) -> Step:
    return Step(
        before={}, gradients=gradients, norm=None, losses={}, read={}, loss=0.0, after={}
    )  # fmt: skip
