"""The loss of a pretrained model before its first step, beside that of the model on disk.

Rank 0 loads the files once more, whole and in one process, and computes the loss of the first
sample; the partitioned model must give the same. Weights that were lost on the way into a layout
show here, whatever the loading report said. Large models, for which that takes long, are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dslm.errors import RunFailed
from dslm.worker.adapters import with_lora
from dslm.worker.assignment import Assignment, Inputs
from dslm.worker.data.packing import IGNORED
from dslm.worker.loading import LoadingReport
from dslm.worker.model import whole_model

_TASKS = ("pretrain", "sft", "sequence", "mlm", "seq2seq")
_CAUSAL = ("pretrain", "sft", "sequence")
_TOKENS = 128  # of the sample
_MOST_BYTES = 8 * 2**30
_SHARE = 0.3  # of the host's free memory
_FAR, _RELATIVE = 0.1, 0.05  # a difference that is no rounding: nats, and share of the loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What the whole model gives for a batch; `loss` is None where it was not computed."""

    batch: dict[str, torch.Tensor]
    loss: float | None


def expected_loss(
    given: Assignment, inputs: Inputs, report: LoadingReport | None
) -> Expected | None:
    """Compute the loss of the first sample by the whole model, on rank 0.

    Called before there are TrainingArguments: under ZeRO-3 a model is partitioned after that.

    Returns:
        None where nothing can be compared: a model from scratch or with new parameters, a resumed
        run, a task without labels of its own, a model that is too large for it.
    """
    recipe = given.recipe
    if report is None or report.new or given.attempt.resumed_from or recipe.task not in _TASKS:
        return None
    if not len(inputs.data.train) or report.size > _MOST_BYTES:
        return None
    loss = None
    config: Any = None
    if given.rank.rank == 0 and report.size < _SHARE * psutil.virtual_memory().available:
        model = whole_model(recipe, inputs.task.auto_class)
        config = model.config
        if recipe.lora is not None and recipe.lora.adapter is not None:  # others change nothing yet
            with torch.random.fork_rng(devices=[]):
                model = with_lora(model, recipe)
        model.eval()
        batch = _batch(given, inputs, config)
        with torch.no_grad():
            loss = loss_of(model, batch, causal=recipe.task in _CAUSAL)
    told: list[Any] = [(loss, config)]
    dist.broadcast_object_list(told, src=0)
    loss, config = told[0]
    if loss is None:
        return None
    return Expected(batch=_batch(given, inputs, config), loss=loss)


def loss_of(model: Any, batch: dict[str, torch.Tensor], *, causal: bool) -> float:
    """Return the mean loss of a batch, from the logits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    logits = model(**inputs).logits.float()
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(
        torch.nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED
        )
    )


def _batch(given: Assignment, inputs: Inputs, config: Any) -> dict[str, torch.Tensor]:
    collate = inputs.task.collator(given.recipe, inputs.tokenizer, config)
    batch = dict(collate([inputs.data.train[0]]))
    if given.recipe.task in _CAUSAL:
        batch = {name: value[:, :_TOKENS] for name, value in batch.items()}
    return batch


class FirstLoss(TrainerCallback):
    """Compares before the first step; all ranks take part, and all end when it differs."""

    def __init__(self, expected: Expected, task: str, trainer: Any) -> None:
        self._expected = expected
        self._causal = task in _CAUSAL
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        engine = self._trainer.model_wrapped
        batch = {
            name: value.to(args.device).to(_format(engine))
            if value.is_floating_point()
            else value.to(args.device)
            for name, value in self._expected.batch.items()
        }
        engine.eval()
        with torch.no_grad():
            found = loss_of(engine, batch, causal=self._causal)
        engine.train()
        check_first_loss(found, self._expected.loss)


def check_first_loss(found: float, wanted: float | None) -> None:
    """Check that the layout's model is the one that lies on disk.

    Raises:
        RunFailed: its loss is another.
    """
    if wanted is None or not math.isfinite(wanted):
        return
    if abs(found - wanted) <= _FAR + _RELATIVE * abs(wanted):
        return
    raise RunFailed(
        f"the model gives a loss of {found:.4f} for the first sample, and {wanted:.4f} when it is "
        "loaded whole, in one process: its weights were not loaded into this layout as they are",
        hint="another `parallel.zero_stage` may load them; `dslm doctor` names versions that are "
        "known not to",
    )


def _format(engine: Any) -> torch.dtype:
    found: torch.dtype = next(engine.module.parameters()).dtype
    return found
