"""A model is cut small for a verification, and keeps what makes a layout go wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from dslm.recipe.load import load_recipe
from dslm.worker.layout.ranks import Layout
from dslm.worker.trace.layers import layers_of
from dslm.worker.verify.reduced import _DROPOUTS, MOST_PARAMETERS, reduced_config, zeroed

ALONE = Layout(world_size=2, rank=0)
FEW = ["llama-3.1-405b", "qwen3-30b-a3b", "gemma-3-4b", "gpt2-1.5b", "pythia-1.4b", "mixtral-8x7b",
       "olmo2-7b", "roberta-large", "t5-base", "vit-base"]  # fmt: skip
# families that no preset is of: heads of two sizes, positions for one size of heads, states instead
# of attention, layers that are one module, experts in groups behind dense layers
OTHERS: dict[str, dict[str, Any]] = {
    "phi3": {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 48,
                              "long_factor": [2.0] * 48, "factor": 32.0},
             "original_max_position_embeddings": 4096, "max_position_embeddings": 131072},
    "mamba": {},
    "falcon": {},
    "bloom": {"n_layer": 30, "hidden_size": 2560, "n_head": 32},
    "gpt_oss": {},
    "deepseek_v3": {"num_hidden_layers": 6},
    "zamba": {},
    "jamba": {"num_hidden_layers": 8},
    "opt": {"num_hidden_layers": 24, "hidden_size": 2048, "ffn_dim": 8192,
            "num_attention_heads": 32},
}  # fmt: skip


def _recipe(name: str) -> Any:
    if name not in OTHERS:
        return load_recipe(name, ["model.init=scratch"]).recipe
    recipe = load_recipe("quickstart", []).recipe
    model = recipe.model.model_copy(update={"architecture": {"model_type": name, **OTHERS[name]}})
    return recipe.model_copy(update={"model": model})


def _model(recipe: Any, config: Any) -> Any:
    from dslm.worker.tasks import task_of

    with torch.device("meta"):
        return getattr(transformers, task_of(recipe).auto_class).from_config(config)


@pytest.mark.parametrize("name", [*FEW, *OTHERS])
def test_a_model_of_any_size_is_cut_and_keeps_its_kinds_of_layers(name: str) -> None:
    recipe = _recipe(name)
    from dslm.worker.model import scratch_config

    config = reduced_config(recipe, None, ALONE)
    full, small = (_model(recipe, each) for each in (scratch_config(recipe, None), config))
    tables = [m for m in (small.get_input_embeddings(), small.get_output_embeddings()) if m]
    beside = sum(p.numel() for p in small.parameters()) - sum(
        {id(t.weight): t.weight.numel() for t in tables if hasattr(t, "weight")}.values()
    )
    assert beside <= 2 * MOST_PARAMETERS
    kinds = [len({layer.kind for layer in layers_of(each)}) for each in (full, small)]
    assert kinds[0] == kinds[1]
    tied = [getattr(each.config, "tie_word_embeddings", None) for each in (full, small)]
    assert tied[0] == tied[1]


def test_heads_and_experts_are_cut_so_that_ranks_share_them_evenly() -> None:
    layout = Layout(world_size=8, rank=0, tensor=8)
    config = reduced_config(_recipe("llama-3.1-405b"), None, layout)
    assert config.num_attention_heads % 8 == 0
    assert config.num_key_value_heads % 8 == 0
    layout = Layout(world_size=8, rank=0, expert=8)
    assert reduced_config(_recipe("qwen3-30b-a3b"), None, layout).num_experts % 8 == 0


def test_a_module_that_is_used_twice_still_is() -> None:
    small = _model(_recipe("zamba"), reduced_config(_recipe("zamba"), None, ALONE))
    once = {id(p) for p in small.parameters()}
    uses = [id(p) for layer in layers_of(small) for p in layer.module.parameters()]
    assert len(uses) > len(once & set(uses))


def test_dropout_is_switched_off_inside_other_configs_too() -> None:
    config = transformers.AutoConfig.for_model("bert")
    assert zeroed(config, _DROPOUTS)
    assert not zeroed(config, _DROPOUTS)
