"""Direct preference optimisation: of two answers the chosen one becomes more likely (TRL's DPO).

The reference is the model as it was at the start; under LoRA, the model without its adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dslm.recipe.schema import Recipe
from dslm.worker.data.chat_tokens import Chat, chats_to_tokens
from dslm.worker.data.reference_columns import packed, precomputed, unpacked
from dslm.worker.tasks.base import Collate, Task, TextsEncoder, Tokenizer, pad_token
from dslm.worker.tasks.measured import MeasuredAlone, means_of, pairs_in
from dslm.worker.tasks.sft import encoded, end_token, first_token

_COLUMNS_OF_ANSWERS = ("chosen", "rejected")
_COLUMNS = ("prompt_ids", *(f"{name}_ids" for name in _COLUMNS_OF_ANSWERS))
# what TRL calls its means over pairs
OF_PAIRS = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected",
)  # fmt: skip


class PreferenceEncoder(TextsEncoder):
    """`prompt`, `chosen` and `rejected`, texts or messages, to the tokens of each."""

    packs = False

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`prompt_ids`, `chosen_ids` and `rejected_ids` of each record."""
        texts = [r for r in records if isinstance(r["prompt"], str)]
        of_texts = iter(encoded(self._tokenizer, texts, "prompt", "chosen", "rejected"))
        chats = [r for r in records if not isinstance(r["prompt"], str)]
        sides = [answered(self._tokenizer, chats, name) for name in _COLUMNS_OF_ANSWERS]
        of_chats = iter(zip(*sides, strict=True))
        return [
            self._checked(
                self._of(next(of_texts))
                if isinstance(r["prompt"], str)
                else _together(*next(of_chats))
            )
            for r in records
        ]

    def _of(self, found: list[list[int]] | str) -> tuple[list[int], ...] | str:
        if isinstance(found, str):
            return found
        prompt, chosen, rejected = found
        end = end_token(self._tokenizer)
        return [*first_token(self._tokenizer), *prompt], chosen + end, rejected + end

    def _checked(self, found: tuple[list[int], ...] | str) -> dict[str, Sequence[int]] | str:
        if isinstance(found, str):
            return found
        room = self._length - len(found[0])
        if room <= 0:
            return f"its prompt alone fills {self._length} tokens (data.sequence_length)"
        cut = (found[0], found[1][:room], found[2][:room])
        return dict(zip(_COLUMNS, cut, strict=True))


def answered(
    tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]], name: str
) -> list[tuple[list[int], list[int]] | str]:
    """The tokens of each record's prompt, and of the answer that it has under a name."""
    chats = [
        Chat(messages=[*r["prompt"], *r[name]], tools=r.get("tools"), answers="last")
        for r in records
    ]
    found = chats_to_tokens(tokenizer, chats) if chats else []
    return [chat if isinstance(chat, str) else _parted(*chat) for chat in found]


def _parted(ids: list[int], mask: list[int]) -> tuple[list[int], list[int]] | str:
    if not any(mask):
        return "has no answer to learn"
    start = mask.index(1)
    return ids[:start], ids[start:]


def _together(
    chosen: tuple[list[int], list[int]] | str, rejected: tuple[list[int], list[int]] | str
) -> tuple[list[int], ...] | str:
    if isinstance(chosen, str) or isinstance(rejected, str):
        return chosen if isinstance(chosen, str) else str(rejected)
    if chosen[0] != rejected[0]:
        return "its two prompts differ"
    return chosen[0], chosen[1], rejected[1]


def both_answers(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    """Makes a batch of pairs: the chosen texts first, then the rejected ones, all (2 B, L)."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=pad_token(tokenizer))

    def together(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lists = [{name: sample[name].tolist() for name in _COLUMNS} for sample in samples]
        batch: dict[str, torch.Tensor] = collate(lists)
        return batch | packed(samples, recipe.task)

    return together


def _trainer() -> tuple[type, type]:
    from trl import DPOConfig, DPOTrainer

    class PreparedDPOTrainer(MeasuredAlone, DPOTrainer):
        """TRL's trainer on data that is tokenised already."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
            """TRL's loss, of numbers that a half-precision engine has left as they are."""
            return super().compute_loss(model, unpacked(inputs), *args, **more)

    return PreparedDPOTrainer, DPOConfig


DPO = Task(
    auto_class="AutoModelForCausalLM",
    encoder=PreferenceEncoder,
    collator=both_answers,
    trainer=_trainer,
    arguments=lambda recipe: {"max_length": None, **precomputed(recipe)},
    measure=means_of(dict.fromkeys(OF_PAIRS, pairs_in)),
)
