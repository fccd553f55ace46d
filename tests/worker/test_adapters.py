"""Adapters of every kind, beside models in few bits too: trained, saved, merged, resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dslm.recipe.schema import Lora, Model, Recipe
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from dslm.worker import export
from dslm.worker.adapters import config_in, save_adapters, with_lora
from tests.conftest import Dslm
from tests.support.models import small_model, sums
from tests.support.warm import warm_dslm
from tests.worker.conftest import losses

pytestmark = pytest.mark.slow

FEW_BITS = importlib.util.find_spec("bitsandbytes") is not None
needs_few_bits = pytest.mark.skipif(not FEW_BITS, reason="needs bitsandbytes")
KINDS: dict[str, dict[str, Any]] = {
    "dora, with patterns and exceptions": {
        "lora.dora": "true", "lora.init": "gaussian", "lora.rank_pattern": "{q_proj: 2}",
        "lora.alpha_pattern": "{q_proj: 4.0}", "lora.exclude": "[down_proj]",
        "lora.modules_to_save": "[lm_head]",
    },
    "pissa, scaled by the root of the rank": {
        "lora.init": "pissa", "lora.rslora": "true", "parallel.zero_stage": 1,
    },
    "two rates, on a regular expression": {
        "lora.b_lr_ratio": 8, "lora.target_modules": r".*\.(q|v)_proj", "parallel.zero_stage": 3,
    },
}  # fmt: skip
ALONE = {"parallel.ranks": 1, "parallel.zero_stage": 0}
Adapted = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and chats."""
    folder = tmp_path_factory.mktemp("adapters")
    small_model(folder / "base")
    sums(folder / "sums.jsonl")
    return folder


@pytest.fixture(scope="module")
def adapted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """The run of an adaptation with these settings, made once."""
    known: dict[str, Path] = {}

    def run(**settings: Any) -> Path:
        key = str(sorted(settings.items()))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("adapted") / "run"
            argv = _argv(made, known[key], settings)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stderr
        return known[key]

    return run


def _argv(made: Path, run: Path, given: dict[str, Any]) -> list[str]:
    settings = {
        "data.train": made / "sums.jsonl", "data.eval": 0, "data.sequence_length": 64,
        "precision": "fp32", "duration.steps": 6, "batch.global_size": 8, "log.every": 1,
        "optimizer.lr": 0.005, "lora.alpha": 4, "schedule.name": "constant",
        "schedule.warmup": 0, "lora.rank": 4, "lora.dropout": 0.0, "parallel.ranks": 2,
        "parallel.zero_stage": 2, "checkpoint.every": "null", **given,
    }  # fmt: skip
    argv = [*warm_dslm(), "train", "--model", str(made / "base"), "--with", "sft,lora"]
    for key, value in settings.items():
        argv += ["-s", f"{key}={value}"]
    return [*argv, "-o", str(run)]


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(40)[None]).logits
    return found


def _base(made: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(made / "base")


def _export(run: Path, output: Path, *, merge: bool, dtype: str | None = None) -> Path:
    """What `dslm export` asks of its worker."""
    request = {"run": str(run), "output": str(output), "merge": merge, "dtype": dtype}
    step = max(int(folder.name[5:]) for folder in (run / "checkpoints").glob("step-*"))
    export.work({**request, "step": step, "push_to_hub": None}, lambda detail: None)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_are_loaded_by_peft_and_merged(
    kind: str, made: Path, adapted: Adapted, tmp_path: Path
) -> None:
    run = adapted(**KINDS[kind])
    found = losses(run)
    assert found[-1] < found[0]
    loaded = _logits(PeftModel.from_pretrained(_base(made), run / "model"))
    assert not torch.allclose(loaded, _logits(_base(made)), atol=1e-3)
    exported = _export(run, tmp_path / "adapters", merge=False)
    again = _logits(PeftModel.from_pretrained(_base(made), exported))
    assert torch.allclose(again, loaded, atol=1e-4)
    merged = _export(run, tmp_path / "merged", merge=True)
    whole = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.allclose(_logits(whole), loaded, atol=1e-4)


def test_patterns_are_kept_with_the_adapters(adapted: Adapted) -> None:
    folder = adapted(**KINDS["dora, with patterns and exceptions"]) / "model"
    assert config_in(folder).rank_pattern == {"q_proj": 2}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {len(t) for name, t in tensors.items() if "q_proj.lora_A" in name} == {2}
    assert {len(t) for name, t in tensors.items() if "k_proj.lora_A" in name} == {4}
    assert not any("down_proj" in name for name in tensors)
    assert "base_model.model.lm_head.weight" in tensors


@pytest.mark.parametrize(
    "given", [{"init": "pissa"}, {"init": "olora", "rslora": True, "rank_pattern": {"q_proj": 2}}]
)
def test_adapters_that_began_as_a_part_of_the_model_become_ones_for_the_whole(
    given: dict[str, Any], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    model = {"name": "./base"}
    recipe = Recipe(model=Model(**model), lora=Lora(rank=4, **given), precision="fp32")
    began = with_lora(_base(made), recipe)
    assert torch.allclose(_logits(began), _logits(_base(made)), atol=1e-4)
    with torch.no_grad():
        for name, parameter in began.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    save_adapters(began, began.state_dict(), tmp_path)
    named = config_in(tmp_path).base_model_name_or_path
    assert named == str(made / "base"), "they are used from any folder"
    loaded = PeftModel.from_pretrained(_base(made), tmp_path)
    assert torch.allclose(_logits(loaded), _logits(began), atol=1e-4)


def test_existing_adapters_go_on(adapted: Adapted) -> None:
    first = adapted(**KINDS["two rates, on a regular expression"])
    second = adapted(**{"lora.adapter": first / "model", "lora.rank": 8})
    assert losses(second)[0] < losses(first)[0]
    config = json.loads((second / "model" / "adapter_config.json").read_text())
    assert config["r"] == 4


@needs_few_bits
@pytest.mark.parametrize(
    ("bits", "stage"), [("nf4", 0), ("nf4", 1), ("nf4", 2), ("nf4", 3), ("int8", 2)]
)
def test_beside_a_model_in_few_bits_two_ranks_learn_what_one_learns(
    bits: str, stage: int, adapted: Adapted
) -> None:
    alone = adapted(quantize=bits, **ALONE)
    together = adapted(quantize=bits, **{"parallel.zero_stage": stage})
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert losses(together)[-1] < losses(together)[0]
    tensors = load_file(together / "model" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}  # TRL makes bf16 of it


@needs_few_bits
def test_merged_it_is_the_unsharded_run_merged(
    made: Path, adapted: Adapted, tmp_path: Path
) -> None:
    alone = adapted(quantize="nf4", **ALONE)
    together = adapted(quantize="nf4", **{"parallel.zero_stage": 3})
    merged = _export(together, tmp_path / "merged", merge=True, dtype="bf16")
    base = AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.bfloat16)
    wanted = PeftModel.from_pretrained(base, alone / "model").merge_and_unload()
    found = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert getattr(found.config, "quantization_config", None) is None
    for name, value in wanted.state_dict().items():
        other = found.state_dict()[name]
        assert other.dtype == torch.bfloat16
        off = (other.float() - value.float()).abs().max()
        assert off <= 2**-7 * value.float().abs().max(), name  # what bf16 rounds off


@needs_few_bits
def test_a_run_in_few_bits_that_was_killed_goes_on(
    made: Path, adapted: Adapted, tmp_path: Path
) -> None:
    given = {"quantize": "nf4", "parallel.zero_stage": 2}
    run = tmp_path / "run"
    argv = [*_argv(made, run, given), "-s", "checkpoint.every=2"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (run / "checkpoints/step-2/manifest.json").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(json.loads((run / "logs/attempt-1/rank-0.json").read_text())["pid"], signal.SIGKILL)
    assert process.wait(60) == 1
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    steps = read_history(RunDirectory(run)).steps
    assert {step.attempt for step in steps} == {1, 2}
    assert [step.loss for step in steps] == losses(adapted(**given))


REFUSED = {
    "quantize=nf4 lora=null": "can't be trained itself",
    "quantize=nf4 parallel.zero_stage=3 parallel.offload=all": "can't be offloaded",
    "quantize=nf4 parallel.tensor=2 parallel.ranks=2 parallel.zero_stage=1": "tensor parallelism",
    "quantize=int8 parallel.zero_stage=3": "can't partition a model in 8 bits",
    "quantize=nf4 lora.init=pissa": "can't be taken out of one in few bits",
    "quantize=nf4 parallel.zeropp=true parallel.zero_stage=3": "ZeRO++",
    "lora.init=pissa parallel.zero_stage=3": "begin as a part of whole matrices",
    "lora.b_lr_ratio=16 optimizer.name=sgd": "LoRA+ is for adamw and adam",
    "lora.dora=true lora.init=pissa": "begins as no change",
    "lora.target_modules=(": "is no regular expression",
    "lora.target_modules=.*_prj": "no module of the model matches",
    "lora.exclude=[q_prj]": "did you mean `q_proj`?",
    "lora.modules_to_save=[head]": "lora.modules_to_save",
    "lora.rank_pattern.q_prj=2": "did you mean `q_proj`?",
    "lora.adapter=./gone": "holds no adapters",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    settings: str, made: Path, warm: Dslm
) -> None:
    if "quantize" in settings and not FEW_BITS:
        pytest.skip("needs bitsandbytes")
    argv = ["train", "--model", str(made / "base"), "--with", "sft,lora", "--dry-run"]
    argv += ["-s", f"data.train={made / 'sums.jsonl'}", "-s", "precision=fp32"]
    argv += ["-s", "data.sequence_length=64"]
    for word in settings.split():
        argv += ["-s", word]
    done = warm(*argv)
    assert done.returncode == 2, done.stdout
    assert REFUSED[settings] in done.stderr
