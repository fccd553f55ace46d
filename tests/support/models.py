"""Small models for the tests: folders with weights and a tokenizer that has a chat template."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dslm.worker.data.builtin_sources import stdlib_records
from dslm.worker.data.tokenizer import CHATML, texts_in, train_tokenizer


def small_model(folder: Path) -> Path:
    """A Llama of two layers with random weights, and a tokenizer with ChatML's template."""
    files = (Path(torch.__file__).parent / "functional.py",)
    texts = [text for _, record in stdlib_records("sft", files) for text in texts_in(record)]
    tokenizer = train_tokenizer(texts, 512)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=512,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def sums(file: Path, count: int = 300) -> Path:
    """Chats of sums of two digits: something that a small model learns within seconds."""
    draw = random.Random(0)
    with file.open("w") as stream:
        for _ in range(count):
            a, b = draw.randrange(10), draw.randrange(10)
            chat = [
                {"role": "user", "content": f"{a} + {b}?"},
                {"role": "assistant", "content": str(a + b)},
            ]
            stream.write(json.dumps({"messages": chat}) + "\n")
    return file
