"""Activations: the published formulas, and what transformers itself keeps."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks.planner_large import compare
from dslm.ask.profile import profile_of
from dslm.profile.levels import LAYER, levels
from dslm.profile.polynomial import monomials
from dslm.profile.value import STAGE_3, Profile
from dslm.recipe.load import load_recipe

S, B, H, A = 1024, 2, 2048, 16
# the mean and the deviation of two norms, in fp32: the paper neglects them
STATISTICS = 2 * 2 * 4 * S * B
# which parts of a scores' softmax are kept in fp32, and masks that dropout leaves, are an
# implementation's own
BERT = {
    "model_type": "bert", "hidden_size": H, "num_hidden_layers": 6, "num_attention_heads": A,
    "intermediate_size": 4 * H, "vocab_size": 50304, "max_position_embeddings": S,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": H, "n_layer": 6, "n_head": A, "n_positions": S,
    "vocab_size": 50304,
}  # fmt: skip


@functools.cache
def _profile(model_type: str, *settings: str) -> Profile:
    architecture: dict[str, Any] = {"bert": BERT, "gpt2": GPT2}[model_type]
    task = "task=mlm" if model_type == "bert" else "task=pretrain"
    recipe = load_recipe("llama-3.2-1b", [task, *settings]).recipe
    found, why = profile_of(recipe, architecture, on_cpu=False)
    assert found is not None and not why, why
    return found


def _layer(profile: Profile, mode: str = "plain") -> float:
    """Bytes that a layer in the middle keeps."""
    one = profile.passes[mode]
    part = max((p for p in one.walk(one.forward) if p[0].name == LAYER), key=lambda p: p[1])[0]
    return part.end.at(monomials(B, S))


def test_a_layer_keeps_what_korthikanti_et_al_count() -> None:
    """arXiv 2205.05198, equation 1: s b h (34 + 5 a s / h) bytes, with exact GELU."""
    expected = S * B * H * (34 + 5 * A * S / H)
    found = _layer(_profile("bert", "model.attention=eager"))
    assert found == pytest.approx(expected + STATISTICS, rel=0.001)


def test_with_recomputation_a_layer_keeps_its_input() -> None:
    """arXiv 2205.05198, section 5: 2 s b h bytes a layer."""
    assert _layer(_profile("gpt2"), "recompute") == 2 * S * B * H


def test_flash_attention_keeps_no_scores() -> None:
    """The term 5 a s² b is gone: what is left grows with the tokens alone."""
    profile = _profile("gpt2", "model.attention=flash_attention_2")
    assert profile.attention == "flash_attention_2"
    one = profile.passes["plain"]
    assert all(part.end.of[0] == 0 for part, _ in one.walk(one.forward) if part.name == LAYER)


def test_under_stage_3_frozen_weights_keep_what_they_were_multiplied_with() -> None:
    """Adapters on one projection: of a layer, the second norm and what enters the last product."""
    recipe = load_recipe("llama-3.2-1b", ["lora.rank=8", "lora.target_modules=[v_proj]"]).recipe
    sizes = recipe.model.architecture
    profile, why = profile_of(recipe, sizes, on_cpu=False)
    assert profile is not None and not why, why
    held = S * B * 2 * (int(sizes["hidden_size"]) + int(sizes["intermediate_size"]))
    assert _layer(profile, f"plain{STAGE_3}") == _layer(profile) + held
    assert _layer(profile, f"recompute{STAGE_3}") == _layer(profile, "recompute")
    assert profile.exact


@pytest.mark.parametrize(
    ("preset", "checkpointing", "lora_rank"),
    [
        ("llama-3.2-1b", True, 0), ("gpt2-1.5b", False, 0), ("gpt2-1.5b", True, 16),
        ("qwen3-1.7b", False, 16), ("olmo2-7b", False, 16),
    ],
)  # fmt: skip
def test_activations_of_large_models_are_those_of_transformers(
    preset: str, checkpointing: bool, lora_rank: int
) -> None:
    row = compare(preset, 1, checkpointing=checkpointing, lora_rank=lora_rank, length=1024)
    assert max(abs(off) for off in row.off.values()) < 0.005, row


def test_a_fused_loss_leaves_the_logits_out() -> None:
    passes = [
        levels(_profile("gpt2", f"model.liger={fused}").passes["plain"], 4, S)
        for fused in ("false", "true")
    ]
    plain, fused = passes
    logits = 4 * S * 50304 * (2 + 4 + 4)
    assert plain.forward - fused.forward > 0.8 * logits
    assert fused.kept < plain.kept


def test_adapters_count_by_the_modules_that_have_them() -> None:
    few = _profile("gpt2", "lora.rank=8", "lora.target_modules=[c_attn]")
    assert few.trained == 6 * 8 * (H + 3 * H)
    many = _profile("gpt2", "lora.rank=8")
    assert many.trained == 6 * 8 * ((H + 3 * H) + (H + H) + 2 * (H + 4 * H))
    assert _layer(many) > _layer(few)
