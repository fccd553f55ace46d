"""An evaluation of the layout beside one of the reference, with the last parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dslm.worker.verify.compare import Difference, difference
from dslm.worker.verify.noise import Noise
from dslm.worker.verify.reference import Reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What an evaluation found; `trains`: a module that didn't know that it was evaluated."""

    loss: float | None
    trains: str = ""


class _Watched:
    """A task's collator that looks at the model each time a batch is made for it."""

    def __init__(self, collate: Any, model: nn.Module) -> None:
        self._collate = collate
        self._model = model
        self.trains = ""

    def __call__(self, samples: list[Any]) -> Any:
        named = self._model.named_modules()
        found = next((name or "the model" for name, m in named if m.training), "")
        self.trains = self.trains or found
        return self._collate(samples)


def evaluated(trainer: Any, samples: Sequence[Any]) -> Evaluated:
    """Evaluate some samples as a training does; all ranks call."""
    usual = trainer._collate
    trainer._collate = watched = _Watched(usual, trainer.model_wrapped.module)
    found = trainer.evaluate(samples)
    trainer._collate = usual
    return Evaluated(loss=found.get("eval_loss"), trains=watched.trains)


def compare_evaluation(
    found: Evaluated,
    reference: Reference,
    samples: Sequence[dict[str, Any]],
    number: int,
    noise: Noise,
    precision: str,
) -> list[Difference]:
    """Compare the loss of an evaluation, and whether dropout was off.

    Args:
        found: what the layout found.
        reference: one process with the same parameters.
        samples: what was evaluated.
        number: the last step.
        noise: of the recipe's number format.
        precision: the format.
    """
    if found.trains:
        what = f"an evaluation doesn't leave `{found.trains}` as it is"
        return [difference("dropout", what, number, math.inf, 0.0, None)]
    if found.loss is None:
        return []
    wanted = reference.loss(samples)
    allowed = 2 * noise.allowed_loss(wanted, precision)
    far = abs(found.loss - wanted) / max(abs(wanted), 1e-6)
    if far <= allowed:
        return []
    ratio = found.loss / wanted if wanted else None
    return [difference("loss", "an evaluation", number, far, allowed, ratio)]
