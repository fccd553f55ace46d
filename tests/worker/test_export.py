"""`dslm export` gives the model that was trained, from a checkpoint of any stage."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dslm.run.directory import RunDirectory
from dslm.run.events import Accuracy
from dslm.run.history import read_history
from dslm.units import render_bytes
from dslm.worker import export as export_module
from dslm.worker.zero_tensors import StoredTensor
from tests.conftest import Dslm
from tests.support.warm import warm_dslm
from tests.worker.conftest import Train, run_dslm

pytestmark = pytest.mark.slow


def _logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(60)[None]).logits


def _export(run: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*warm_dslm(), "export", str(run), "-o", str(output), *options],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_exported_model_gives_the_logits_of_the_trained_one(
    stage: int, trained: Train, tmp_path: Path
) -> None:
    sample = {"evaluation__sample": "def "} if stage == 3 else {}
    run = trained(ranks=2, parallel__zero_stage=stage, **sample)
    done = _export(run, tmp_path / "model", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 10
    assert torch.equal(_logits(tmp_path / "model"), _logits(run / "model"))
    architectures = [
        json.loads((folder / "config.json").read_text())["architectures"]
        for folder in (tmp_path / "model", run / "model")
    ]
    assert architectures == [["LlamaForCausalLM"]] * 2
    card = (tmp_path / "model" / "README.md").read_text()
    assert "- steps: 10" in card
    assert "transformers" in card
    if stage == 3:
        events = (run / "events.jsonl").read_text().splitlines()
        assert json.loads(events[-1])["sample"].startswith("def")


def test_another_number_format(trained: Train, tmp_path: Path) -> None:
    run = trained(ranks=2, parallel__zero_stage=2)
    done = _export(run, tmp_path / "model", "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) > 256


def test_lora_gives_adapters_and_merged_a_whole_model(trained: Train, tmp_path: Path) -> None:
    base = trained(ranks=2, parallel__zero_stage=2) / "model"
    run = run_dslm(
        tmp_path,
        "quickstart",
        {
            "model.init": "pretrained", "model.name": str(base), "model.tokenizer": "null",
            "lora": "{rank: 4}", "duration.steps": 6, "data.max_documents": 60, "log.every": 1,
            "data.sequence_length": 64, "batch.global_size": 8, "parallel.zero_stage": 3,
            "evaluation.sample": "def ", "checkpoint.every": "null",
        },
    )  # fmt: skip
    assert (run / "model" / "adapter_model.safetensors").is_file()
    for options, output in (((), "adapters"), (("--merge",), "merged")):
        done = _export(run, tmp_path / output, *options)
        assert done.returncode == 0, done.stderr
    trained_logits = _logits(run / "model")
    assert torch.equal(_logits(tmp_path / "adapters"), trained_logits)
    assert torch.allclose(_logits(tmp_path / "merged"), trained_logits, atol=1e-4)
    assert not torch.allclose(_logits(base), trained_logits, atol=1e-4)
    head, _, card = (run / "model" / "README.md").read_text().removeprefix("---").partition("---")
    assert "base_model" not in head, "the Hub refuses a card that names a folder there"
    assert f"- trained from: {base}" in card
    compared = read_history(RunDirectory(run)).last(Accuracy)
    assert compared is not None
    planned = render_bytes(compared.predicted_bytes or 0)
    assert (
        f"| memory of a rank | {planned} | {render_bytes(compared.measured_bytes or 0)} |" in card
    )


def test_what_can_not_be_exported_says_why(warm: Dslm, trained: Train, tmp_path: Path) -> None:
    run = trained(ranks=2, parallel__zero_stage=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for options, message in (
        (["--checkpoint", "7"], "no complete checkpoint of step 7"),
        (["--dtype", "b16"], "no number format `b16`"),
        (["--merge"], "no adapters to merge"),
        (["-o", str(tmp_path / "full")], "already exists"),
    ):
        done = warm("export", str(run), *options)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_in_its_own_words(warm: Dslm, trained: Train, tmp_path: Path) -> None:
    run = trained(ranks=2, parallel__zero_stage=2)
    disk = tmp_path / "disk"
    disk.mkdir()
    for size in ("16k", "256k"):  # no room for the tokenizer, and for the weights
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
        try:
            done = warm("export", str(run), "-o", str(disk / "model"))
            assert done.returncode == 1
            assert "could not be written: No space left on device\n" in done.stderr
            assert not list(disk.iterdir())
        finally:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "offline",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},  # nothing listens there
        {"HF_ENDPOINT": "https://hub.invalid"},
    ],
)
def test_an_upload_that_fails_leaves_the_model_and_says_so(
    dslm: Dslm, trained: Train, tmp_path: Path, offline: dict[str, str]
) -> None:
    run = trained(ranks=2, parallel__zero_stage=2)
    output = tmp_path / "model"
    options = ("-o", str(output), "--push-to-hub", "somebody/something")
    done = dslm("export", str(run), *options, **offline)
    assert done.returncode == 1
    assert "the model is written, but its upload to `somebody/something` failed" in done.stderr
    assert "hf upload somebody/something" in done.stderr
    assert "Traceback" not in done.stderr
    assert (output / "model.safetensors").is_file()


def test_a_large_model_is_several_files_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    config.save_pretrained(tmp_path)
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    tensors = {
        # in two pieces, the second with padding, as ZeRO-3 keeps them
        name: StoredTensor(
            tensor.shape,
            tensor.dtype,
            (tensor.flatten()[:100], torch.cat([tensor.flatten()[100:], torch.ones(3)])),
        )
        for name, tensor in state.items()
    }
    monkeypatch.setattr(export_module, "_SHARD", "20KB")
    export_module.write_model(tmp_path, tensors, torch.float32, lambda detail: None)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        expected = model(input_ids=torch.arange(60)[None]).logits
    assert torch.equal(_logits(tmp_path), expected)
