"""A model whose weights are not all there is refused before the first step, at any layout."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dslm.errors import RecipeError
from dslm.recipe.load import load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import Error, Step
from dslm.run.history import read_history
from dslm.worker.loading import LoadingReport, check_patterns
from dslm.worker.model import build_model, examine_weights
from tests.support.warm import warm_dslm
from tests.worker.conftest import SMALL, losses, run_dslm

SIZES = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
Tensors = dict[str, torch.Tensor]


def _model(folder: Path, kind: str = "llama", **sizes: Any) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **sizes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _rewritten(change: Callable[[Tensors], Tensors]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = _model(folder) / "model.safetensors"
        tensors = change(load_file(file))
        save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})
        return folder

    return make


def _another_architecture(folder: Path) -> Path:
    other = _model(folder / "other", "gpt2", n_embd=64, n_layer=2, n_head=4)
    _model(folder / "model")
    shutil.copy(other / "model.safetensors", folder / "model" / "model.safetensors")
    return folder / "model"


def _truncated(folder: Path) -> Path:
    file = _model(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def _adapter_of_another_base(folder: Path) -> Path:
    """An adapter beside the config of a model whose layers are wider than those it is for."""
    wide, base = _model(folder / "wide", hidden_size=128), _model(folder / "base")
    target = folder / "adapter"
    model = AutoModelForCausalLM.from_pretrained(wide)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(target)
    said = json.loads((target / "adapter_config.json").read_text())
    said["base_model_name_or_path"] = str(base)
    (target / "adapter_config.json").write_text(json.dumps(said))
    shutil.copy(base / "config.json", target)
    return target


def _without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if part not in k}


def _sharded(folder: Path) -> Path:
    """The model in several files, with an index."""
    model = AutoModelForCausalLM.from_pretrained(_model(folder / "whole"))
    model.save_pretrained(folder / "parts", max_shard_size="300KB")
    return folder / "parts"


def _a_part_is_missing(folder: Path) -> Path:
    made = _sharded(folder)
    sorted(made.glob("model-*.safetensors"))[-1].unlink()
    return made


def _a_part_is_elsewhere(folder: Path) -> Path:
    made = _sharded(folder)
    index = made / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["model.norm.weight"] = "model-00099-of-00099.safetensors"
    index.write_text(json.dumps(said))
    return made


def _of_another_size(folder: Path) -> Path:
    wide = _model(folder / "wide", hidden_size=128)
    _model(folder / "model")
    shutil.copy(wide / "model.safetensors", folder / "model" / "model.safetensors")
    return folder / "model"


def _tied_and_apart(folder: Path) -> Path:
    """A head of its own in the files of a model whose config says that it is the table."""
    file = _model(folder, tie_word_embeddings=True) / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = torch.randn(2048, 64)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def _adapters(**sizes: Any) -> Callable[[Path], Path]:
    """Adapters of a model of other sizes, beside one that they are not for."""

    def make(folder: Path) -> Path:
        other = AutoModelForCausalLM.from_pretrained(_model(folder / "other", **sizes))
        target = ["q_proj"] if sizes else ["up_proj"]
        made = get_peft_model(other, LoraConfig(r=4, target_modules=target))
        made.save_pretrained(folder / "adapters")
        if not sizes:  # the config is of others than the weights
            file = folder / "adapters" / "adapter_config.json"
            said = json.loads(file.read_text())
            file.write_text(json.dumps({**said, "target_modules": ["q_proj"]}))
        return _model(folder / "model")

    return make


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """How a folder comes to lack weights, with which settings, and what the refusal says of it."""

    make: Callable[[Path], Path]
    said: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)  # MADE: the folder
    recipe: str = "quickstart"


_FEW_BITS = {"quantize": "nf4", "lora": "{rank: 4}", "precision": "bf16"}
CASES: dict[str, Case] = {
    "renamed keys": Case(
        make=_rewritten(lambda t: {k.replace("self_attn", "attn"): v for k, v in t.items()}),
        said=("8 of 21 parameters", "self_attn.q_proj.weight ×2", "attn.q_proj.weight ×2"),
    ),
    "another architecture": Case(
        make=_another_architecture, said=("parameters", "another model's"),
    ),
    "a truncated file": Case(make=_truncated, said=("can't be loaded",)),
    "an adapter for another base": Case(
        make=_adapter_of_another_base, said=("holds an adapter of",),
    ),
    "a head that is new and not named": Case(
        make=_rewritten(_without("lm_head")),
        said=("1 of 21 parameters", "lm_head.weight", "new_parameters=[lm_head.*]"),
    ),
    "a layer that is missing": Case(
        make=_rewritten(_without("layers.1.")), said=("9 of 21 parameters", "not in the files (9)"),
    ),
    "another vocabulary": Case(
        make=_rewritten(lambda t: t | {"model.embed_tokens.weight": torch.zeros(1000, 64)}),
        said=("embed_tokens.weight [1000, 64] instead of [2048, 64]",),
    ),
    "saved while partitioned": Case(
        make=_rewritten(lambda t: {k: v[:0] if "mlp" in k else v for k, v in t.items()}),
        said=("empty in the files (6)", "mlp.down_proj.weight ×2", "ZeRO-3"),
    ),
    "a part of the files is missing": Case(make=_a_part_is_missing, said=("can't be loaded",)),
    "an index that names another file": Case(make=_a_part_is_elsewhere, said=("can't be loaded",)),
    "a model of another size": Case(
        make=_of_another_size,
        said=("of another shape in the files (21)", "[2048, 128] instead of [2048, 64]"),
    ),
    "a prefix too many": Case(
        make=_rewritten(lambda t: {f"module.{k}": v for k, v in t.items()}),
        said=("21 of 21 parameters", "module."),
    ),
    "a base without its head": Case(
        make=_rewritten(
            lambda t: {k.removeprefix("model."): v for k, v in _without("lm_head")(t).items()}
        ),
        said=("1 of 21 parameters", "lm_head.weight"),
    ),
    "whole numbers in place of weights": Case(
        make=_rewritten(
            lambda t: {k: v.mul(100).to(torch.int8) if "q_proj" in k else v for k, v in t.items()}
        ),
        said=("whole numbers in the files (2)", "self_attn.q_proj.weight ×2"),
    ),
    "a head apart from a table that it should be": Case(
        make=_tied_and_apart, said=("lm_head.weight", "tie_word_embeddings"),
    ),
    "a pattern that names nothing": Case(
        make=_model, said=("no parameter", "skore.*"),
        settings={"model.new_parameters": "[skore.*]"},
    ),
    "few bits that lack a layer": Case(
        make=_rewritten(_without("layers.1.")), said=("9 of 21 parameters",), settings=_FEW_BITS,
    ),
    "preferences whose start lacks a layer": Case(
        make=_rewritten(_without("layers.1.")), said=("9 of 21 parameters",),
        recipe="quickstart-dpo",
    ),
    "adapters of a wider model": Case(
        make=_adapters(hidden_size=128), said=("adapters", "are another model's"),
        settings={"lora": "{}", "lora.adapter": "MADE/adapters"},
    ),
    "adapters of other layers": Case(
        make=_adapters(), said=("adapters", "are another model's"),
        settings={"lora": "{}", "lora.adapter": "MADE/adapters"},
    ),
}  # fmt: skip


def _settings(model: Path, stage: int, ranks: int) -> dict[str, Any]:
    kept = {k: v for k, v in SMALL.items() if not k.startswith("model.architecture")}
    return {
        **kept, "model.init": "pretrained", "model.name": str(model),
        "model.tokenizer": "{vocab_size: 2048}", "parallel.offload": "none",
        "parallel.zero_stage": stage, "parallel.ranks": ranks,
    }  # fmt: skip


def _refusal(folder: Path, recipe: str, settings: Mapping[str, Any]) -> str:
    """Train a model; what its refusal says."""
    run = folder / "run"
    argv = [*warm_dslm(), "train", recipe, "-o", str(run)]
    for key, value in settings.items():
        argv += ["-s", f"{key}={value}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "400"},
    )  # fmt: skip
    if done.returncode not in (1, 2):
        return f"it ended with {done.returncode}: {done.stderr}"
    if done.returncode == 2:  # before anything was launched
        assert not run.exists()
        return done.stderr
    history = read_history(RunDirectory(run))
    error = history.last(Error)
    if history.all(Step) or error is None:
        return f"it made steps: {done.stderr}"
    return f"{error.cause} {error.remedy}"


def not_refused(name: str, stage: int, ranks: int, folder: Path) -> str:
    """Train a model whose weights are not all there: what was said, "" if it was refused so."""
    case = CASES[name]
    made = folder / "made"
    settings = _settings(case.make(made), stage, ranks)
    settings |= {key: value.replace("MADE", str(made)) for key, value in case.settings.items()}
    text = _refusal(folder, case.recipe, settings)
    return "" if all(part in text for part in case.said) else f"{name}: {text}"


@pytest.mark.parametrize("name", [name for name in CASES if name != "an adapter for another base"])
def test_weights_that_are_not_there_are_refused_by_the_process_that_loads_them(
    name: str, tmp_path: Path
) -> None:
    case, made = CASES[name], tmp_path / "made"
    settings = _settings(case.make(made), 2, 1)
    settings |= {key: value.replace("MADE", str(made)) for key, value in case.settings.items()}
    recipe = load_recipe(case.recipe, [f"{k}={v}" for k, v in settings.items()]).recipe
    with pytest.raises(RecipeError) as refused:
        report = examine_weights(recipe, "AutoModelForCausalLM")
        build_model(recipe, "AutoModelForCausalLM", None, report)  # adapters are put on it here
    text = f"{refused.value} {refused.value.hint}"
    assert all(part in text for part in case.said), text


# Each case at one of the four layouts; the report is made before a model is partitioned, so it is
# the same at all of them. `make verify-faults` tries every case at every layout.
LAYOUTS = list(itertools.product((2, 3), (1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "stage", "ranks"),
    [(case, *LAYOUTS[number % len(LAYOUTS)]) for number, case in enumerate(CASES)],
)
def test_weights_that_are_not_there_end_the_run_before_the_first_step(
    case: str, stage: int, ranks: int, tmp_path: Path
) -> None:
    assert not not_refused(case, stage, ranks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_head_that_is_named_may_be_new_or_of_another_shape(stage: int, tmp_path: Path) -> None:
    def other_head(tensors: Tensors) -> Tensors:
        left = {k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}
        return left | {"lm_head.weight": torch.zeros(1000, 64)}

    model = _rewritten(other_head)(tmp_path / "made")
    run = run_dslm(
        tmp_path, "quickstart",
        _settings(model, stage, 2)
        | {"model.new_parameters": "[lm_head.*, '*.up_proj.*']", "duration.steps": 2},
    )  # fmt: skip
    assert len(losses(run)) == 2


def test_a_pattern_that_names_nothing_is_an_error() -> None:
    report = LoadingReport(parameters=("score.weight",), missing=("score.weight",))
    with pytest.raises(RecipeError, match="no parameter") as raised:
        check_patterns(report, ["skore.*"])
    assert raised.value.hint == "did you mean `score.*`?"
