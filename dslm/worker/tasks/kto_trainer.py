"""TRL's KTOTrainer with one estimate of the KL term a step, from the samples of all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from trl import KTOTrainer
from trl.trainer.utils import use_adapter

from dslm.worker.data.reference_columns import as_bits, unpacked

_KL = ("KL_input_ids", "KL_attention_mask", "KL_completion_mask")
# carries the step's estimate into the loss, which takes no other name of TRL's for it
_ESTIMATE = "KL_completion_mask"


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
                found = found - (self._of_reference(foreign) if kept is None else kept.to(found))
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
