"""Kahneman-Tversky optimisation: single answers, each labelled good or bad (TRL's KTO).

The loss compares with how far the model is from its reference on answers that don't belong to
their prompts (arXiv 2402.01306, equation 7). TRL estimates that from each micro batch; here it is
estimated once from all samples of a step, so that neither ranks nor micro batches show in it, and
each prompt's foreign answer is that of one and the same other sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from dslm.recipe.schema import Recipe
from dslm.worker.data.reference_columns import packed, precomputed
from dslm.worker.data.store import Samples
from dslm.worker.tasks.base import Collate, Task, TextsEncoder, Tokenizer, pad_token
from dslm.worker.tasks.dpo import answered
from dslm.worker.tasks.measured import Batch, means_of
from dslm.worker.tasks.sft import encoded, end_token, first_token

_FOREIGN = "KL_completion_ids"


class LabelledAnswerEncoder(TextsEncoder):
    """`prompt`, `completion` and `label` to the tokens of both, and `good`: 1 or 0."""

    packs = False

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`prompt_ids`, `completion_ids` and `good` of each record."""
        texts = [r for r in records if isinstance(r["prompt"], str)]
        of_texts = iter(encoded(self._tokenizer, texts, "prompt", "completion"))
        chats = [r for r in records if not isinstance(r["prompt"], str)]
        of_chats = iter(answered(self._tokenizer, chats, "completion"))
        return [
            self._checked(
                self._of(next(of_texts)) if isinstance(r["prompt"], str) else next(of_chats),
                good=r["label"],
            )
            for r in records
        ]

    def _of(self, found: list[list[int]] | str) -> tuple[list[int], list[int]] | str:
        if isinstance(found, str):
            return found
        prompt, completion = found
        return [*first_token(self._tokenizer), *prompt], completion + end_token(self._tokenizer)

    def _checked(
        self, found: tuple[list[int], list[int]] | str, *, good: bool
    ) -> dict[str, Sequence[int]] | str:
        if isinstance(found, str):
            return found
        room = self._length - len(found[0])
        if room <= 0:
            return f"its prompt alone fills {self._length} tokens (data.sequence_length)"
        self.notes["cut"] += len(found[1]) > room
        return {"prompt_ids": found[0], "completion_ids": found[1][:room], "good": [int(good)]}


class WithForeignAnswers(Dataset[dict[str, Any]]):
    """Samples, each with the answer of another one: half the data set away.

    Neighbours in a file are often answers to the same prompt.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> dict[str, Any]:
        count = len(self._samples)
        other = self._samples[(place % count + count // 2) % count]
        return {**self._samples[place], _FOREIGN: other["completion_ids"]}


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    length = recipe.data.sequence_length
    collate = DataCollatorForUnpairedPreference(
        pad_token_id=pad_token(tokenizer), max_length=length
    )
    names = ("prompt_ids", "completion_ids", _FOREIGN)

    def together(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lists = [
            {name: sample[name].tolist() for name in names if name in sample}
            | {"label": bool(sample["good"][0])}
            for sample in samples
        ]
        batch: dict[str, torch.Tensor] = collate(lists)
        return batch | packed(samples, recipe.task)

    return together


def _trainer() -> tuple[type, type]:
    from trl import KTOConfig

    from dslm.worker.tasks.kto_trainer import PreparedKTOTrainer

    return PreparedKTOTrainer, KTOConfig


def _all(batch: Batch) -> int:
    return len(batch["label"])


def _good(batch: Batch) -> int:
    return int(batch["label"].sum())


def _bad(batch: Batch) -> int:
    return _all(batch) - _good(batch)


_COUNTS = {
    "loss": _all, "kl": _all, "rewards/chosen": _good, "rewards/rejected": _bad,
    "logps/chosen": _good, "logps/rejected": _bad,
}  # fmt: skip


def _measure(*given: Any, **settings: Any) -> dict[str, float]:
    """Means over all samples, good ones and bad ones apart, and the margin between these."""
    found = means_of(_COUNTS)(*given, **settings)
    if {"rewards/chosen", "rewards/rejected"} <= set(found):
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


KTO = Task(
    auto_class="AutoModelForCausalLM",
    encoder=LabelledAnswerEncoder,
    collator=_collator,
    trainer=_trainer,
    arguments=lambda recipe: {"max_length": None, **precomputed(recipe)},
    view=WithForeignAnswers,
    measure=_measure,
)
