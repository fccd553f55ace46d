"""A script as anybody writes it: the Hugging Face Trainer with a shipped DeepSpeed config."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed


def main() -> None:
    """Train three steps with each config named; print the losses of each as JSON."""
    found = {}
    data = [{"input_ids": (ids := torch.randint(1, 64, (16,))), "labels": ids} for _ in range(64)]
    for path in sys.argv[1:]:
        AcceleratorState._reset_state()
        PartialState._reset_state()
        set_seed(1)
        arguments = TrainingArguments(
            output_dir="out",
            deepspeed=path,
            bf16=True,
            use_cpu=True,
            max_steps=3,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        )
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
            )
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        found[path] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if arguments.process_index == 0:
        Path("losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
