"""Activations: the published formulas, and what transformers itself keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.planner_large import compare
from dslm.plan.activations import Pass, activations, layer_bytes
from dslm.plan.shape import ModelShape, shape_of

S, B, H, A = 1024, 2, 2048, 16
HALF = Pass(sequences=B, length=S, element=2, attention="eager")


def _shape(model_type: str) -> ModelShape:
    return shape_of({
        "model_type": model_type, "hidden_size": H, "num_hidden_layers": 24,
        "num_attention_heads": A, "intermediate_size": 4 * H, "vocab_size": 50304,
        "n_embd": H, "n_layer": 24, "n_head": A, "n_positions": S, "max_position_embeddings": S,
    })  # fmt: skip


# the mean and the deviation of two norms: the paper neglects them
STATISTICS = 4 * 2 * S * B


def test_a_layer_keeps_what_korthikanti_et_al_count() -> None:
    """arXiv 2205.05198, equation 1: s b h (34 + 5 a s / h) bytes, with exact GELU."""
    expected = S * B * H * (34 + 5 * A * S / H)
    assert layer_bytes(_shape("bert"), HALF) == expected + STATISTICS


def test_gpt2_keeps_three_more_tensors_of_its_gelu() -> None:
    """transformers writes GPT-2's GELU out: half its input, the tanh, one more than it."""
    expected = S * B * H * (34 + 3 * 8 + 5 * A * S / H)
    assert layer_bytes(_shape("gpt2"), HALF) == expected + STATISTICS


def test_with_recomputation_a_layer_keeps_its_input() -> None:
    """arXiv 2205.05198, section 5: 2 s b h bytes a layer."""
    one = replace(HALF, checkpointing=True)
    two, three = (activations(replace(_shape("gpt2"), layers=n), one).kept for n in (24, 25))
    assert three - two == 2 * S * B * H


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
    assert max(abs(off) for off in row.off.values()) < 0.01, row


def test_fused_loss_leaves_the_logits_out() -> None:
    shape = shape_of({
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256,
    })  # fmt: skip
    plain = Pass(sequences=4, length=2048, element=2)
    without, fused = activations(shape, plain), activations(shape, replace(plain, liger=True))
    assert without.logits == 4 * 2048 * 128256 * 12
    assert fused.logits < without.logits / 10
    assert fused.kept < without.kept


def test_lora_keeps_less_of_frozen_norms_and_a_little_of_its_adapters() -> None:
    shape = _shape("llama")
    plain = Pass(sequences=1, length=S, element=2)
    difference = layer_bytes(shape, replace(plain, lora_rank=16)) - layer_bytes(shape, plain)
    assert difference == S * (7 * 16 * 2 - 2 * 2 * H)
