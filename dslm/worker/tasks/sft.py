"""Supervised fine-tuning: chats or prompts with answers, and loss on the answers only.

The loss is TRL's (SFTTrainer), which never holds the logits of a whole batch; the data is prepared
and packed as for every other task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dslm.worker.data.chat_tokens import Chat, chats_to_tokens
from dslm.worker.data.tokenizer import token_ids
from dslm.worker.metrics import TokenLoss
from dslm.worker.tasks.base import Task, TextsEncoder
from dslm.worker.tasks.pretrain import stacking, text_of


class AnswerEncoder(TextsEncoder):
    """`messages`, or `prompt` and `completion`, to `input_ids` and a `mask` of what is learnt."""

    packs = True

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids` and `mask` of each record; a chat loses whole turns, a completion its end."""
        chats = [
            Chat(messages=r["messages"], tools=r.get("tools"), answers=self._answers)
            for r in records
            if "messages" in r
        ]
        of_chats = iter(
            chats_to_tokens(self._tokenizer, chats, self._length, self.notes) if chats else ()
        )
        texts = [r for r in records if "messages" not in r]
        of_texts = iter(encoded(self._tokenizer, texts, "prompt", "completion"))
        return [
            self._checked(next(of_chats) if "messages" in r else self._of(next(of_texts)))
            for r in records
        ]

    def _of(self, pair: list[list[int]] | str) -> tuple[list[int], list[int]] | str:
        if isinstance(pair, str):
            return pair
        prompt = [*first_token(self._tokenizer), *pair[0]]
        completion = [*pair[1], *end_token(self._tokenizer)]
        return prompt + completion, [0] * len(prompt) + [1] * len(completion)

    def _checked(self, found: tuple[list[int], list[int]] | str) -> dict[str, Sequence[int]] | str:
        if isinstance(found, str):
            return found
        ids, mask = found[0][: self._length], found[1][: self._length]
        if not any(mask):
            return (
                "has no answer to learn"
                if len(found[0]) <= self._length
                else f"its prompt alone fills {self._length} tokens (data.sequence_length)"
            )
        self.notes["cut"] += len(ids) < len(found[0])
        return {"input_ids": ids, "mask": mask}


def encoded(
    tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]], *fields: str
) -> list[list[list[int]] | str]:
    """The tokens of some fields of each record, all encoded together; or what is wrong with it."""
    found = [[text_of(record, field) for field in fields] for record in records]
    wrong = [next((what for _, what in texts if what), "") for texts in found]
    good = [text for texts, what in zip(found, wrong, strict=True) if not what for text, _ in texts]
    ids = iter(token_ids(tokenizer, good))
    return [what or [next(ids) for _ in fields] for what in wrong]


def first_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-text token, if the tokenizer itself puts it before a text."""
    ids: list[int] = tokenizer("a")["input_ids"]
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and ids and ids[0] == begin else []


def end_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end-of-text token, or nothing."""
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []


def _trainer() -> tuple[type, type]:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer, SFTConfig


SFT = Task(
    auto_class="AutoModelForCausalLM",
    encoder=AnswerEncoder,
    collator=stacking,
    metric=lambda recipe, labels: TokenLoss(shifted=True),
    trainer=_trainer,
    arguments=lambda recipe: {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
    },
)
