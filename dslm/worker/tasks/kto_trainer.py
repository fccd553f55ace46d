"""TRL's KTOTrainer with one estimate of the KL term a step, from the samples of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from trl import KTOTrainer
from trl.trainer.utils import use_adapter

from dslm.worker.data.reference_columns import as_bits, unpacked
from dslm.worker.tasks.measured import Batch, Batches, MeasuredAlone

_KL = ("KL_input_ids", "KL_attention_mask", "KL_completion_mask")
# carries the step's estimate into the loss, which takes no other name of TRL's for it
_ESTIMATE = "KL_completion_mask"


class PreparedKTOTrainer(MeasuredAlone, KTOTrainer):
    """TRL's trainer on data that is tokenised already, with one estimate a step or evaluation."""

    def __init__(self, *, args: Any, **given: Any) -> None:
        micro = args.per_device_train_batch_size
        args.per_device_train_batch_size = max(2, micro)  # TRL would pair within a micro batch
        super().__init__(args=args, **given)
        args.per_device_train_batch_size = self._train_batch_size = micro
        self._held_out = 0.0  # the estimate of an evaluation

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
            estimate = self._estimated((batch, True) for batch in batches)
            batches = [_with_estimate(batch, estimate) for batch in batches]
        return batches, count

    def begin_evaluation(self, batches: Callable[[], Batches]) -> None:
        """Make one estimate, from all samples."""
        self._held_out = self._estimated(batches()) if self.calculate_KL else 0.0

    def measured(self, batch: Batch) -> dict[str, float]:
        """Return the loss and TRL's metrics of a batch, compared with the estimate of all."""
        return super().measured(
            _with_estimate(batch, self._held_out) if self.calculate_KL else batch
        )

    def _estimated(self, batches: Batches) -> float:
        """How far the model is from its reference, over the foreign answers of all ranks."""
        total = torch.zeros(2, device=self.args.device)
        with torch.no_grad():
            for batch, counted in batches:
                foreign = self._prepare_inputs({name: batch[name] for name in _KL})
                found = super()._compute_kl_logps(self.model_wrapped, foreign)
                kept = unpacked(batch).get("ref_KL_logps")
                found = found - (self._of_reference(foreign) if kept is None else kept.to(found))
                if counted:
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


def _with_estimate(batch: dict[str, Any], estimate: float) -> dict[str, Any]:
    """A batch with the estimate in place of foreign answers."""
    rows = batch["label"].shape
    return {
        **{name: value for name, value in batch.items() if name not in _KL},
        _ESTIMATE: as_bits(torch.full(rows, estimate)),
        "ref_KL_logps": as_bits(torch.zeros(rows)),
    }
