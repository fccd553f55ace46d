"""Judges what a layout was recorded to do: each step beside the same one in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dslm.units import number_of
from dslm.worker.assignment import Assignment, Inputs
from dslm.worker.number_formats import DTYPES
from dslm.worker.verify.compare import (
    Difference,
    Step,
    compare_gradients,
    compare_losses,
    compare_norm,
    compare_ranks,
    compare_samples,
    wrong_parameters,
)
from dslm.worker.verify.evaluation import Evaluated, compare_evaluation
from dslm.worker.verify.noise import Measuring, Noise
from dslm.worker.verify.plain import Plain
from dslm.worker.verify.reduced import Reduced
from dslm.worker.verify.reference import Found, Tensors
from dslm.worker.verify.settings import compare_settings, rate_of
from dslm.worker.verify.updates import Updates

_OF_START = ".ref."  # in the name of a copy that TRL keeps of adapters as they were


class Judge:
    """The reference, the noise of the recipe's number format, and the rule of its optimizer."""

    def __init__(
        self, given: Assignment, inputs: Inputs, trainer: Any, plain: Plain, small: Reduced
    ) -> None:
        """Judge the steps of a trainer that has finished, from the first one on."""
        self.samples = 0
        self._given = given
        self._steps = inputs.steps
        self._small = small
        self._stored = inputs.task.view(inputs.data.train)
        self._reference = plain.reference
        micro = given.config["train_micro_batch_size_per_gpu"]
        self._measuring = Measuring(plain.reference, plain.own_format(), micro)
        self._noise = Noise()  # of the first step
        decayed = frozenset(trainer.get_decay_parameter_names(plain.reference.model))
        self._updates = Updates(given.recipe, given.stage, decayed)
        whole = given.recipe.precision == "fp32" or given.recipe.autocast
        self._rounded = torch.float32 if whole else DTYPES[given.recipe.precision]

    @property
    def parameters(self) -> int:
        """How many are compared."""
        return len(self._reference.trained())

    @property
    def noise(self) -> float:
        """The first step's, of the parameter that has most."""
        return max(self._noise.gradients.values(), default=0.0)

    def differences(self, step: Step, number: int, places: Sequence[int]) -> list[Difference]:
        """Compare a step, from 1, which was made of the samples at these places."""
        recipe, batch = self._given.recipe, [self._stored[place] for place in places]
        self.samples += len(batch)
        other = self._reference.unlike(step.before) if number == 1 else []
        other += [name for name in self._taken(step.before) if _OF_START not in name]
        if number == 1:
            self._measuring.begin(step.before)
        wanted = self._reference.find(batch)
        if number == 1:
            self._noise = self._measuring.noise(step.before, batch, wanted)
        rate = rate_of(recipe, number - 1, self._steps)
        dropout = self._small.had_dropout
        return [
            *wrong_parameters(other, number),
            *compare_samples(step, number, wanted),
            *compare_ranks(step, number, self._given.layout, dropout=dropout),
            *compare_settings(step.settings, number, recipe, rate),
            *self._gaps(step, number, batch, wanted),
            *compare_norm(step, number, recipe.precision),
            *self._updates.compare(step, number, wanted.gradients, rate),
        ]

    def _taken(self, parameters: Tensors) -> list[str]:
        """Names that the reference hasn't, which goes on as the layout does: with rounded ones."""
        return self._reference.take(parameters, self._rounded)

    def _gaps(
        self, step: Step, number: int, batch: list[dict[str, Any]], wanted: Found
    ) -> list[Difference]:
        """Where losses and gradients are off, by more than this very step's noise."""
        found = self._beyond(self._noise, step, number, wanted)
        if found:
            closer = self._measuring.closer(step.before, batch, wanted)
            found = self._beyond(closer, step, number, wanted)
        return found

    def _beyond(self, noise: Noise, step: Step, number: int, wanted: Found) -> list[Difference]:
        precision = self._given.recipe.precision
        return [
            *compare_losses(step, number, wanted, noise, precision),
            *compare_gradients(step, number, wanted, noise, precision),
        ]

    def of_evaluation(
        self, found: Evaluated, last: Step, number: int, places: Sequence[int]
    ) -> list[Difference]:
        """Compare an evaluation of samples with the parameters after the last step."""
        samples, precision = [self._stored[p] for p in places], self._given.recipe.precision
        self._taken(last.after)
        return compare_evaluation(found, self._reference, samples, number, self._noise, precision)

    def left_out(self, last: Step) -> tuple[str, ...]:
        """Say what no reference is known of."""
        told = {
            f"updates of {self._given.recipe.optimizer.name}": not self._updates.knows,
            f"gradients of {number_of(len(last.unknown), 'parameter')}": bool(last.unknown),
            "the norm of gradients": bool(last.muon) and last.norm is None,
            "the router's loss": self._small.had_router_loss,
            "losses of single samples": not last.losses,
        }
        return tuple(text for text, true in told.items() if true)
