"""Direct preference optimisation: of two answers the chosen one becomes more likely (TRL's DPO).

The reference is the model as it was at the start; under LoRA, the model without its adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dslm.recipe.schema import Recipe
from dslm.worker.tasks.base import Collate, Task, TextsEncoder, Tokenizer, pad_token
from dslm.worker.tasks.sft import chat_ids, encoded, end_token, first_token

_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class PreferenceEncoder(TextsEncoder):
    """`prompt`, `chosen` and `rejected`, texts or messages, to the tokens of each."""

    packs = False

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`prompt_ids`, `chosen_ids` and `rejected_ids` of each record."""
        texts = encoded(self._tokenizer, records, "prompt", "chosen", "rejected")
        return [
            self._checked(
                self._chats(record) if isinstance(record.get("chosen"), list) else self._of(found)
            )
            for record, found in zip(records, texts, strict=True)
        ]

    def _of(self, found: list[list[int]] | str) -> tuple[list[int], ...] | str:
        if isinstance(found, str):
            return found
        prompt, chosen, rejected = found
        end = end_token(self._tokenizer)
        return [*first_token(self._tokenizer), *prompt], chosen + end, rejected + end

    def _chats(self, record: dict[str, Any]) -> tuple[list[int], ...] | str:
        given = {name: record.get(name) or [] for name in ("prompt", "chosen", "rejected")}
        for name, messages in given.items():
            if not isinstance(messages, list):
                return f"its `chosen` is a list of messages, and its `{name}` is none"
        found = []
        for name in ("chosen", "rejected"):
            chat = chat_ids(self._tokenizer, [*given["prompt"], *given[name]])
            if isinstance(chat, str):
                return chat
            ids, mask = chat
            if not any(mask):
                return f"its `{name}` holds no answer of the assistant"
            # only the last answer differs: what stands before it is the prompt of both
            start = len(mask) - mask[::-1].index(1)
            while start and mask[start - 1]:
                start -= 1
            found.append((ids[:start], ids[start:]))
        (prompt, chosen), (other, rejected) = found
        return (prompt, chosen, rejected) if prompt == other else "its two prompts differ"

    def _checked(self, found: tuple[list[int], ...] | str) -> dict[str, Sequence[int]] | str:
        if isinstance(found, str):
            return found
        room = self._length - len(found[0])
        if room <= 0:
            return f"its prompt alone fills {self._length} tokens (data.sequence_length)"
        cut = (found[0], found[1][:room], found[2][:room])
        return dict(zip(_COLUMNS, cut, strict=True))


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=pad_token(tokenizer))

    def together(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lists = [{name: sample[name].tolist() for name in _COLUMNS} for sample in samples]
        batch: dict[str, torch.Tensor] = collate(lists)
        return batch

    return together


def _trainer() -> tuple[type, type]:
    from trl import DPOConfig, DPOTrainer

    class PreparedDPOTrainer(DPOTrainer):
        """TRL's trainer on data that is tokenised already."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return PreparedDPOTrainer, DPOConfig


DPO = Task(
    auto_class="AutoModelForCausalLM",
    encoder=PreferenceEncoder,
    collator=_collator,
    trainer=_trainer,
    arguments={"max_length": None},
    metric=None,
    reference=True,
)
