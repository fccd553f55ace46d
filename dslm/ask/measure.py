"""Measure this machine in a process of its own: seconds of products, passes, collectives, disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from dslm.ask.call import ask
from dslm.ask.profile import profile_request
from dslm.cluster.measurement import Measurement, Model
from dslm.codec import decode
from dslm.recipe.load import load_recipe

CPU_RANKS = 2
PRECISIONS = {False: ("bf16", "fp32"), True: ("bf16", "fp16", "fp32")}  # measured; True: on CUDA
_ANY = "quickstart"  # a recipe, for what a profile's request takes from one
# Small models whose passes are measured, in the same sizes on every machine of a kind. Their shapes
# reach from what only launches cost to what products fill.
_CPU_MODELS: tuple[Model, ...] = (
    Model(
        architecture={
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "vocab_size": 1024,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
        },
        shapes=((1, 32), (2, 128), (8, 128), (1, 1024)),
    ),
    Model(
        architecture={
            "model_type": "gpt2", "n_embd": 384, "n_layer": 3, "n_head": 6, "n_positions": 2048,
            "vocab_size": 4096, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        shapes=((1, 64), (4, 128), (1, 512)),
    ),
)  # fmt: skip
_GPU_MODELS: tuple[Model, ...] = (
    Model(
        architecture={
            "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816,
            "vocab_size": 32000, "num_hidden_layers": 3, "num_attention_heads": 16,
            "num_key_value_heads": 16, "max_position_embeddings": 8192,
        },
        shapes=((1, 64), (4, 1024), (16, 1024), (1, 8192)),
    ),
    Model(
        architecture={
            "model_type": "gpt2", "n_embd": 4096, "n_layer": 2, "n_head": 32, "n_positions": 4096,
            "vocab_size": 50304, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        shapes=((1, 1024), (4, 2048), (2, 4096)),
    ),
)  # fmt: skip


def models(*, cuda: bool) -> tuple[Model, ...]:
    """The architectures whose passes are measured, and their shapes."""
    return _GPU_MODELS if cuda else _CPU_MODELS


def profile_requests(precisions: Iterable[str], *, cuda: bool) -> list[dict[str, object]]:
    """Requests for the profiles of these models, all of a precision in a row; they ship."""
    base = load_recipe(_ANY).recipe
    return [
        profile_request(
            base.model_copy(update={"precision": precision}), dict(one.architecture),
            on_cpu=not cuda,
        )
        for precision in precisions
        for one in models(cuda=cuda)
    ]  # fmt: skip


def measure(*, ranks: int, cuda: bool, on_phase: Callable[[str], None]) -> Measurement:
    """Return what was measured of the local device, its links and the disk of this folder."""
    request = {
        "ranks": ranks if cuda else CPU_RANKS,
        "cuda": cuda,
        "folder": str(Path.cwd()),
        "passes": [asdict(model) for model in models(cuda=cuda)],
    }
    return decode(Measurement, json.dumps(ask("dslm.worker.measure", request, on_phase)))
