"""Supervised fine-tuning: chats or prompts with answers, and loss on the answers only.

The loss is TRL's (SFTTrainer), which never holds the logits of a whole batch; the data is prepared
and packed as for every other task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dslm.worker.data.records import first_line
from dslm.worker.data.tokenizer import token_ids
from dslm.worker.metrics import TokenLoss
from dslm.worker.tasks.base import Task, TextsEncoder
from dslm.worker.tasks.pretrain import stacking, text_of


class AnswerEncoder(TextsEncoder):
    """`messages`, or `prompt` and `completion`, to `input_ids` and a `mask` of what is learnt."""

    packs = True

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`input_ids` and `mask` of each record, cut at the sequence length."""
        pairs = encoded(self._tokenizer, records, "prompt", "completion")
        return [
            self._checked(
                chat_ids(self._tokenizer, record["messages"])
                if "messages" in record
                else self._of(pair)
            )
            for record, pair in zip(records, pairs, strict=True)
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


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Any
) -> tuple[list[int], list[int]] | str:
    """Return the tokens of a chat by the tokenizer's template, and a mask of the assistant's.

    What can't be made of it is said: a chat that the template refuses, or no template.
    """
    if tokenizer.chat_template is None:
        return (
            "is a chat, and the tokenizer has no chat template (model.tokenizer): use that of a "
            "chat model, or data with `prompt` and `completion`"
        )
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages
    ):
        return "its `messages` are not a list of `{role, content}`"
    try:
        return _rendered(tokenizer, messages)
    except Exception as failure:  # noqa: BLE001 - templates are programs: they raise anything
        return f"the chat template refuses it: {first_line(failure)}"


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]
) -> tuple[list[int], list[int]] | str:
    if "{% generation" in tokenizer.chat_template.replace("{%-", "{%"):
        found = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), list(found["assistant_masks"])
    # a template that doesn't say which tokens it generates: compare it with and without each answer
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    mask = [0] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(
            messages[:number], add_generation_prompt=True, return_dict=False
        )
        after = tokenizer.apply_chat_template(messages[: number + 1], return_dict=False)
        if ids[: len(before)] != before:
            return "the chat template renders earlier messages differently when an answer follows"
        for place in range(len(before), min(len(after), len(ids))):
            mask[place] = 1
    return ids, mask


def _trainer() -> tuple[type, type]:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer, SFTConfig


SFT = Task(
    auto_class="AutoModelForCausalLM",
    encoder=AnswerEncoder,
    collator=stacking,
    metric=lambda recipe, labels: TokenLoss(shifted=True),
    trainer=_trainer,
    arguments={"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None},
)
