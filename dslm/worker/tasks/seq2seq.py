"""Text to text with an encoder and a decoder, such as T5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dslm.recipe.schema import Recipe
from dslm.worker.data.packing import IGNORED
from dslm.worker.tasks.base import (
    Collate,
    Task,
    TextsEncoder,
    Tokenizer,
    cross_entropy,
    pad_token,
    padded,
)
from dslm.worker.tasks.sft import encoded, end_token


class PairEncoder(TextsEncoder):
    """`prompt` and `completion` to `input_ids` and `label_ids`, each cut at the sequence length."""

    packs = False

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids` and `label_ids` of each record, the end-of-text token last."""
        pairs = encoded(self._tokenizer, [_pair(r) for r in records], "prompt", "completion")
        return [pair if isinstance(pair, str) else self._of(*pair) for pair in pairs]

    def _of(self, source: list[int], target: list[int]) -> dict[str, Sequence[int]]:
        end = end_token(self._tokenizer)
        room = self._length - len(end)
        return {"input_ids": source[:room] + end, "label_ids": target[:room] + end}


def _pair(record: dict[str, Any]) -> dict[str, Any]:
    """What a chat of one turn asks and answers, as a prompt and its completion."""
    messages = record.get("messages")
    if not messages or [m["role"] for m in messages] != ["user", "assistant"]:
        return record
    return {"prompt": messages[0]["content"], "completion": messages[1]["content"]}


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    pad = pad_token(tokenizer)
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else pad

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = padded([sample["input_ids"] for sample in samples], pad)
        labels = padded([sample["label_ids"] for sample in samples], IGNORED)
        lengths = torch.tensor([[len(sample["input_ids"])] for sample in samples])
        shifted = labels.roll(1, 1)
        shifted[:, 0] = start
        return {
            "input_ids": inputs,
            "attention_mask": (torch.arange(inputs.shape[1]) < lengths).long(),
            "decoder_input_ids": shifted.masked_fill(shifted == IGNORED, pad),
            "labels": labels,
        }

    return collate


SEQ2SEQ = Task(
    auto_class="AutoModelForSeq2SeqLM",
    encoder=PairEncoder,
    collator=_collator,
    loss=cross_entropy,
)
