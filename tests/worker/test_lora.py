"""LoRA on every text task: adapters are trained, saved, and merged into a whole model."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig

from dslm.recipe.load import load_recipe
from dslm.worker.data.builtin_sources import stdlib_records
from dslm.worker.data.tokenizer import texts_in, train_tokenizer
from tests.support.warm import warm_dslm
from tests.worker.conftest import run_dslm

pytestmark = pytest.mark.slow

CLASSES = {
    "sft": "AutoModelForCausalLM",
    "dpo": "AutoModelForCausalLM",
    "kto": "AutoModelForCausalLM",
    "reward": "AutoModelForSequenceClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "mlm": "AutoModelForMaskedLM",
}

HEADS = {"classify": "classifier.*", "reward": "score.*"}


def _base(task: str, folder: Path) -> None:
    """A folder with a small random model of the preset's kind, and a tokenizer."""
    sizes = dict(load_recipe(f"quickstart-{task}", []).recipe.model.architecture)
    torch.manual_seed(0)
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    if task == "seq2seq":
        config.decoder_start_token_id = 1
    # of two labels: the classifier's head is made anew for those of the data
    getattr(transformers, CLASSES[task]).from_config(config).save_pretrained(folder)
    files = (Path(torch.__file__).parent / "functional.py",)
    texts = [text for _, record in stdlib_records("sft", files) for text in texts_in(record)]
    train_tokenizer(texts, 2048).save_pretrained(folder)


def _logits(model: Any, task: str) -> torch.Tensor:
    ids = torch.arange(40)[None]
    more = {"decoder_input_ids": ids} if task == "seq2seq" else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits


@pytest.mark.parametrize("task", CLASSES)
def test_adapters_of_every_text_task_are_saved_and_merged(task: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    _base(task, base)
    run = run_dslm(
        tmp_path,
        f"quickstart-{task}",
        {
            "model.init": "pretrained", "model.name": str(base), "model.tokenizer": "null",
            "lora": "{rank: 4}", "duration.steps": 4, "data.max_documents": 3000,
            "batch.global_size": 8, "parallel.ranks": 1, "evaluation.sample": "null",
            "optimizer.lr": 0.01, "schedule.warmup": 0,
            "model.new_parameters": f"[{HEADS[task]}]" if task in HEADS else "[]",
        },
    )  # fmt: skip
    assert (run / "model" / "adapter_model.safetensors").is_file()
    argv = [*warm_dslm(), "export", str(run), "--merge", "-o", str(tmp_path / "merged")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    factory = getattr(transformers, CLASSES[task])
    merged = factory.from_pretrained(tmp_path / "merged")
    before = factory.from_pretrained(base, config=merged.config, ignore_mismatched_sizes=True)
    expected = _logits(PeftModel.from_pretrained(before, run / "model"), task)
    assert torch.allclose(_logits(merged, task), expected, atol=1e-4)
    again = factory.from_pretrained(base, config=merged.config, ignore_mismatched_sizes=True)
    assert not torch.allclose(_logits(again, task), expected, atol=1e-4)
