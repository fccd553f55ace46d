"""An untouched script of transformers' Trainer trains with a recipe's config, before one's eyes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Dslm

# In the manner of transformers' own examples: dataclasses of arguments, a parser, a Trainer.
SCRIPT = """
from dataclasses import dataclass, field

import torch
from transformers import (
    AutoConfig, AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments,
)


@dataclass
class ModelArguments:
    width: int = field(default=32)


class Counting(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, place):
        tokens = torch.arange(place, place + 16) % 100
        return {"input_ids": tokens, "labels": tokens}


def main():
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, args = parser.parse_args_into_dataclasses()
    print("width", model_args.width, "rate", args.learning_rate, flush=True)
    config = AutoConfig.for_model(
        "llama", hidden_size=model_args.width, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, vocab_size=100,
    )
    trainer = Trainer(AutoModelForCausalLM.from_config(config), args, train_dataset=Counting(),
                      eval_dataset=Counting())
    trainer.train()
    print("evaluated", trainer.evaluate(), flush=True)


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_an_untouched_trainer_script_trains(dslm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "clm.py").write_text(SCRIPT)
    done = dslm(
        "launch", "clm.py", "--num-gpus", "2", "--recipe", "quickstart", "--pass-config",
        "-o", "runs/mine", "--json",
        "--", "--width", "64", "--max_steps", "6", "--learning_rate", "0.001",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # its output is shown while it runs, and which values are whose
    assert "width 64 rate 0.001" in done.stderr
    assert "--weight_decay 0.1" in done.stderr
    assert "learning_rate" in done.stderr
    config = json.loads((tmp_path / "runs/mine/ds_config.json").read_text())
    assert config["optimizer"]["params"]["lr"] == 0.001
    assert config["optimizer"]["params"]["betas"] == [0.9, 0.95]
    # its steps are the run's
    summary = json.loads(done.stdout)
    assert (summary["step"], summary["steps"], summary["status"]) == (6, 6, "done")
    assert summary["loss"] is not None
    assert summary["eval_loss"] is not None
    assert summary["parameters"] > 10_000
    listed = json.loads(dslm("runs", "list", "--json").stdout)
    assert [(run["step"], run["steps"]) for run in listed] == [(6, 6)]
