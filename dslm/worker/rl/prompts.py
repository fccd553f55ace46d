"""Prompts as data: their tokens, and everything else that a record holds, for the rewards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from dslm.recipe.schema import Recipe
from dslm.worker.data.chat_tokens import check_template
from dslm.worker.data.order import GlobalBatchSampler
from dslm.worker.data.records import first_line
from dslm.worker.data.store import Samples
from dslm.worker.data.tokenizer import token_ids
from dslm.worker.tasks.base import TextsEncoder
from dslm.worker.tasks.sft import first_token

SAMPLES = "samples"  # in a batch: the records that are answered
# what TRL takes for something else, or gives to rewards itself
_TAKEN = frozenset({
    "prompts", "completion", "completions", "completion_ids", "image", "images", "environments",
    "trainer_state", "log_extra", "log_metric",
})  # fmt: skip


class PromptEncoder(TextsEncoder):
    """`prompt`, a text or messages, to its tokens; the record itself goes along as JSON."""

    packs = False

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(recipe, tokenizer)
        self._room = recipe.data.sequence_length - recipe.rollout.max_tokens
        self._answer = recipe.rollout.max_tokens

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`prompt_ids` and `record` of each record."""
        texts = [self._text(record) for record in records]
        good = [text for text, what in texts if not what]
        ids = iter(token_ids(self._tokenizer, good))
        return [
            what or self._checked(record, next(ids))
            for record, (_, what) in zip(records, texts, strict=True)
        ]

    def _text(self, record: dict[str, Any]) -> tuple[str, str]:
        """The prompt as text, and what is wrong with it."""
        prompt = record["prompt"]
        if isinstance(prompt, str):
            return prompt, ""
        check_template(self._tokenizer)
        try:
            text = self._tokenizer.apply_chat_template(
                prompt, tools=record.get("tools"), tokenize=False, add_generation_prompt=True
            )
        except Exception as failure:  # noqa: BLE001 - templates are programs: they raise anything
            return "", f"the chat template refuses it: {first_line(failure)}"
        return str(text), ""

    def _checked(self, record: dict[str, Any], ids: list[int]) -> dict[str, Sequence[int]] | str:
        if isinstance(record["prompt"], str):
            ids = [*first_token(self._tokenizer), *ids]
        if len(ids) > self._room:
            return (
                f"its prompt of {len(ids)} tokens leaves no room for an answer of {self._answer} "
                "(data.sequence_length, rollout.max_tokens)"
            )
        try:
            kept = json.dumps(record).encode()
        except (TypeError, ValueError) as failure:
            return f"can't be kept as JSON: {failure}"
        return {"prompt_ids": ids, "record": list(kept)}


class Prompts(Dataset[dict[str, Any]]):
    """Prepared prompts as records again; asked for by place, or by place and number of answer."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, wanted: int | tuple[int, int]) -> dict[str, Any]:
        place, copy = wanted if isinstance(wanted, tuple) else (wanted, 0)
        stored = self._samples[place]
        record = json.loads(stored["record"].astype(np.uint8).tobytes())
        fields = {k: v for k, v in record.pop("fields", {}).items() if k not in _TAKEN}
        ids = stored["prompt_ids"].tolist()
        return {**fields, **record, "prompt_ids": ids, "place": place, "copy": copy}


class GroupSampler(GlobalBatchSampler):
    """Answers of a step, a group to each prompt; a round of steps learns from the same ones.

    What a rank answers comes as one batch at the beginning of a step, and nothing in the micro
    batches after that: the Trainer keeps what was answered, for all steps of a round. A batch is a
    list of pairs, the place of a prompt and the number of the answer. Each rank takes the next
    piece of the list of all, so that neighbouring answers are those to one prompt.
    """

    def __init__(self, *, group: int, rounds: int, **given: Any) -> None:
        super().__init__(**given)
        self._group = group
        self._rounds = rounds  # optimizer steps that learn from the same answers

    def batch_of(self, step: int) -> int:
        """Return which batch of prompts an optimizer step (from 0) is of."""
        return super().batch_of(step // self._rounds)

    @property
    def samples_per_batch(self) -> int:
        """Prompts of a step."""
        return self.global_batch // self._group

    def answers_of_rank(self, step: int) -> list[tuple[int, int]]:
        """Place and number of each answer that this rank gives."""
        prompts = self.samples_of_step(step).tolist()
        answers = [(place, copy) for place in prompts for copy in range(self._group)]
        share = len(answers) // self.share.world_size
        return answers[self.share.rank * share : (self.share.rank + 1) * share]

    def __iter__(self) -> Iterator[list[Any]]:
        for step in range(self.start_step, self.steps):
            yield self.answers_of_rank(step)
            yield from [[]] * (self.accumulation - 1)
