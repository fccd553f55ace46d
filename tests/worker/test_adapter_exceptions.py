"""Adapters on models that peft takes with exceptions: experts, scans, heads, convolutions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners import tuners_utils
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from dslm.errors import RecipeError
from dslm.recipe.schema import Lora, Model, Recipe
from dslm.worker.adapters import _SCANNING, with_lora
from dslm.worker.trace.profile import profile

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
NO_EXPERTS = ["q_proj", "v_proj"]


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, **MIXTURES.get(kind, {})}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


def _adapted(kind: str, **lora: Any) -> Any:
    recipe = Recipe(
        task="pretrain",
        model=Model(init="pretrained", name="base"),
        lora=Lora(rank=4, **lora),
    )
    return with_lora(_model(kind), recipe)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_learn_without_dropout_and_the_rest_with_it(kind: str, tmp_path: Path) -> None:
    model = _adapted(kind, dropout=0.25)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    shares = {
        isinstance(layer, ParamWrapper): getattr(layer.lora_dropout["default"], "p", 0.0)
        for layer in layers
    }
    assert shares == {True: 0.0, False: 0.25}
    tokens = torch.arange(12)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("experts" in name for name in trained)
    assert all(p.grad is not None for p in trained.values())
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(_model(kind), str(tmp_path)).eval()
    found, expected = (each(input_ids=tokens).logits for each in (loaded, model.eval()))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("exclude", [None, ["in_proj"], r".*in_proj"])
def test_what_a_scan_takes_by_itself_has_no_adapters(exclude: Any) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    recipe = Recipe(
        task="pretrain", model=Model(init="pretrained", name="x"), lora=Lora(exclude=exclude)
    )
    made = with_lora(model, recipe)
    found = {
        name.rpartition(".")[2] for name, m in made.named_modules() if isinstance(m, LoraLayer)
    }
    assert found == {"in_proj", "x_proj", "dt_proj"} - ({"in_proj"} if exclude else set())


@pytest.mark.parametrize("kind", sorted(_SCANNING))
def test_peft_refuses_adapters_behind_a_scan(kind: str) -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type=kind))
    with pytest.raises(ValueError, match="incompatible"):
        tuners_utils._check_lora_target_modules_mamba(LoraConfig(), model, "out_proj")


@pytest.mark.parametrize(
    ("task", "factory", "sizes"),
    [
        ("classify", AutoModelForSequenceClassification, {
            "model_type": "distilbert", "vocab_size": 64, "dim": 16, "n_heads": 2, "n_layers": 1,
            "hidden_dim": 32,
        }),
        ("vision", AutoModelForImageClassification, {
            "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1],
        }),
    ],
)  # fmt: skip
def test_what_peft_cannot_do_is_refused_with_its_reason(
    task: str, factory: Any, sizes: dict[str, Any]
) -> None:
    model = factory.from_config(AutoConfig.for_model(**sizes))
    recipe = Recipe(task=task, model=Model(init="pretrained", name="x"), lora=Lora())
    with pytest.raises(RecipeError, match="peft can't put these adapters") as refused:
        with_lora(model, recipe)
    assert refused.value.where.key == "lora.target_modules"


def test_a_dense_model_keeps_its_dropout_in_the_config() -> None:
    assert _adapted("llama", dropout=0.25).peft_config["default"].lora_dropout == 0.25


@pytest.mark.parametrize(
    ("key", "lora"),
    [("dora", {"dora": True}), ("init", {"init": "pissa"}), ("init", {"init": "olora"})],
)
def test_what_experts_cannot_have_is_refused_and_goes_on_the_rest(
    key: str, lora: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="adapters on experts") as refused:
        _adapted("qwen3_moe", **lora)
    assert refused.value.where.key == f"lora.{key}"
    assert _adapted("qwen3_moe", target_modules=NO_EXPERTS, **lora) is not None


@pytest.mark.parametrize(
    ("wanted", "refused"), [({}, ""), ({"dora": True}, "dora"), ({"init": "pissa"}, "init")]
)
def test_the_plan_knows_it_before_anything_starts(wanted: dict[str, Any], refused: str) -> None:
    sizes = {"model_type": "qwen3_moe", **SIZES, **MIXTURES["qwen3_moe"]}
    request = {
        "architecture": sizes, "task": "pretrain", "attention": "auto", "fused_loss": False,
        "precision": "bf16", "device": "cpu",
        "lora": {"rank": 4, "dropout": 0.25, "target_modules": "all-linear", **wanted},
    }  # fmt: skip
    if refused:
        with pytest.raises(RecipeError, match="adapters on experts") as failure:
            profile(request)
        assert failure.value.where.key == f"lora.{refused}"
    else:
        found = profile(request)
        assert not found.why
        assert any(group.adapter and group.expert for group in found.parameters)
