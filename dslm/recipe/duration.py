"""The number of optimizer steps of a run, and of its warm-up."""

from __future__ import annotations

import math

from dslm.recipe.schema import Recipe


def samples_per_step(recipe: Recipe) -> float:
    """Samples of the data that an optimizer step is of, on average over a round of them."""
    if recipe.task != "grpo":
        return float(recipe.batch.global_size)
    return recipe.batch.global_size / recipe.rollout.group / recipe.rollout.rounds


def total_steps(recipe: Recipe, samples: int | None = None) -> int | None:
    """Optimizer steps of the run.

    Args:
        recipe: its duration and batch.
        samples: samples in the training data, if known.

    Returns:
        None where only the data tells (`duration.epochs`) and `samples` isn't given.
    """
    duration = recipe.duration
    if duration.steps is not None:
        return duration.steps
    if duration.tokens is not None:
        per_step = recipe.batch.global_size * recipe.data.sequence_length
        return math.ceil(duration.tokens / per_step)
    if samples is None or duration.epochs is None:
        return None
    return max(1, math.ceil(duration.epochs * samples / samples_per_step(recipe)))


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Steps of the warm-up: a share of all steps below 1, a number of steps from 1 on."""
    warmup = recipe.schedule.warmup
    return math.ceil(warmup * steps) if warmup < 1 else min(int(warmup), steps)
