"""Kahneman-Tversky optimisation: single answers, each labelled good or bad (TRL's KTO).

The loss compares with how far the model is from its reference on answers that don't belong to
their prompts (arXiv 2402.01306, equation 7). TRL estimates that from each micro batch; here it is
estimated once from all samples of a step, so that neither ranks nor micro batches show in it, and
each prompt's foreign answer is that of one and the same other sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from dslm.recipe.schema import Recipe
from dslm.worker.data.reference_columns import as_bits, packed, precomputed, unpacked
from dslm.worker.data.store import Samples
from dslm.worker.tasks.base import Collate, Task, TextsEncoder, Tokenizer, pad_token
from dslm.worker.tasks.dpo import answered
from dslm.worker.tasks.sft import encoded, end_token, first_token

_FOREIGN = "KL_completion_ids"
_KL = ("KL_input_ids", "KL_attention_mask", "KL_completion_mask")
# carries the step's estimate into the loss, which takes no other name of TRL's for it
_ESTIMATE = "KL_completion_mask"


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
    from trl import KTOConfig, KTOTrainer
    from trl.trainer.utils import use_adapter

    class PreparedKTOTrainer(KTOTrainer):
        """TRL's trainer on data that is tokenised already, with one estimate a step."""

        def __init__(self, *, args: Any, **given: Any) -> None:
            micro = args.per_device_train_batch_size
            args.per_device_train_batch_size = max(2, micro)  # TRL would pair within a micro batch
            super().__init__(args=args, **given)
            args.per_device_train_batch_size = self._train_batch_size = micro

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def get_batch_samples(
            self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
        ) -> tuple[list[Any], Any]:
            """The micro batches of a step, with the estimate in place of foreign answers."""
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
            if self.calculate_KL and batches:
                estimate = self._estimated(batches)
                for batch in batches:
                    rows = len(batch["label"])
                    for name in _KL:
                        del batch[name]
                    batch[_ESTIMATE] = as_bits(torch.full((rows,), estimate))
                    batch["ref_KL_logps"] = as_bits(torch.zeros(rows))
            return batches, count

        def _estimated(self, batches: list[Any]) -> float:
            """How far the model is from its reference, over the foreign answers of all ranks."""
            total = torch.zeros(2, device=self.args.device)
            with torch.no_grad():
                for batch in batches:
                    foreign = self._prepare_inputs({name: batch[name] for name in _KL})
                    found = super()._compute_kl_logps(self.model_wrapped, foreign)
                    kept = unpacked(batch).get("ref_KL_logps")
                    found = found - (
                        self._of_reference(foreign) if kept is None else kept.to(found)
                    )
                    total += torch.stack([found.sum().float(), total.new_tensor(len(found))])
            total = self.accelerator.reduce(total, reduction="sum")
            return float(total[0] / total[1])

        def _of_reference(self, foreign: dict[str, torch.Tensor]) -> torch.Tensor:
            if self.ref_model is not None:
                return super()._compute_kl_logps(self.ref_model, foreign)
            inner = self.accelerator.unwrap_model(self.model)
            with use_adapter(inner, adapter_name="ref" if "ref" in inner.peft_config else None):
                return super()._compute_kl_logps(self.model, foreign)

        def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
            if "KL_input_ids" in batch or not self.calculate_KL:
                return super()._compute_kl_logps(model, batch)
            estimate = batch[_ESTIMATE]  # of the model; its difference from nothing is the estimate
            return estimate if model is self.model_wrapped else torch.zeros_like(estimate)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
            """TRL's loss, of numbers that a half-precision engine has left as they are."""
            return super().compute_loss(model, unpacked(inputs), *args, **more)

    return PreparedKTOTrainer, KTOConfig


KTO = Task(
    auto_class="AutoModelForCausalLM",
    encoder=LabelledAnswerEncoder,
    collator=_collator,
    trainer=_trainer,
    arguments=lambda recipe: {"max_length": None, **precomputed(recipe)},
    view=WithForeignAnswers,
    metric=None,
)
