"""A reward model: one number for a text, higher for the better of two answers (TRL's)."""

from __future__ import annotations

from typing import Any

import torch

from dslm.recipe.schema import Recipe
from dslm.worker.tasks.base import Collate, Task, Tokenizer, pad_token
from dslm.worker.tasks.dpo import PreferenceEncoder
from dslm.worker.tasks.measured import MeasuredAlone, means_of, pairs_in

_MEANS = ("loss", "accuracy", "margin", "mean_reward")


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    from trl.trainer.reward_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=pad_token(tokenizer))

    def together(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lists = []
        for sample in samples:
            prompt = sample["prompt_ids"].tolist()
            answers = {name: sample[name].tolist() for name in ("chosen_ids", "rejected_ids")}
            lists.append({name: prompt + answer for name, answer in answers.items()})
        batch: dict[str, torch.Tensor] = collate(lists)
        return batch

    return together


def _trainer() -> tuple[type, type]:
    from trl import RewardConfig, RewardTrainer

    class PreparedRewardTrainer(MeasuredAlone, RewardTrainer):
        """TRL's trainer on data that is tokenised already."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return PreparedRewardTrainer, RewardConfig


REWARD = Task(
    auto_class="AutoModelForSequenceClassification",
    encoder=PreferenceEncoder,
    collator=_collator,
    trainer=_trainer,
    arguments=lambda recipe: {"max_length": None},
    config={"num_labels": 1},
    measure=means_of(dict.fromkeys(_MEANS, pairs_in)),
)
