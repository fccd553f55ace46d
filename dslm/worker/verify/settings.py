"""What each rank's optimizer is set to, beside what the recipe says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dslm.recipe.schema import Recipe
from dslm.worker.verify.compare import Difference, difference

Settings = Mapping[str, tuple[float, ...]]  # of all groups of an optimizer, by name
RATE, _CLIP = "learning rate", "clipping"
_NAMES = {"eps": "eps", "weight_decay": "weight decay"}
# of a recipe's optimizer, what is looked at beside the rate and clipping
_HAS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("beta 1", "beta 2", "eps", "weight decay"),
    "adam": ("beta 1", "beta 2", "eps", "weight decay"),
    "lion": ("beta 1", "beta 2", "weight decay"),
    "sgd": ("weight decay",),
    "muon": ("weight decay",),
}
_EQUAL = 1e-6


def settings_of(engine: Any) -> Settings:
    """Return what an engine's optimizer is set to right now."""
    found: dict[str, list[float]] = {}
    for group in getattr(engine.optimizer, "param_groups", ()):
        values = {RATE: group.get("lr")}
        values |= {name: group.get(key) for key, name in _NAMES.items()}
        betas = group.get("betas") or (None, None)
        values |= {"beta 1": betas[0], "beta 2": betas[1]}
        for name, value in values.items():
            if value is not None and not isinstance(value, tuple | list):
                found.setdefault(name, []).append(float(value))
    clip = getattr(engine.optimizer, "clip_grad", None)
    found[_CLIP] = [float(engine.gradient_clipping() if clip is None else clip)]
    return {name: tuple(dict.fromkeys(values)) for name, values in found.items()}


def rate_of(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, of so many, by the curve of a recipe."""
    done = step / max(steps, 1)
    factors = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return recipe.optimizer.lr * factors.get(recipe.schedule.name, 1.0)


def compare_settings(
    ranks: Sequence[Settings], number: int, recipe: Recipe, rate: float
) -> list[Difference]:
    """Compare the settings of every rank with the recipe's."""
    return [
        difference(
            RATE if name == RATE else "optimizer",
            f"rank {rank}" if name == RATE else f"rank {rank}: {name} {value:g}",
            number, far, _EQUAL, value / nearest if nearest else None,
        )
        for rank, own in enumerate(ranks)
        for name, wanted in _wanted(recipe, rate)
        for value in own.get(name, ())
        for nearest, far in [_nearest(value, wanted)]
        if not far <= _EQUAL
    ]  # fmt: skip


def _wanted(recipe: Recipe, rate: float) -> Iterator[tuple[str, tuple[float, ...]]]:
    optimizer, lora = recipe.optimizer, recipe.lora
    yield RATE, (rate,) if lora is None else (rate, rate * lora.b_lr_ratio)
    yield _CLIP, (optimizer.grad_clip,)
    values = {
        "beta 1": optimizer.betas[0],
        "beta 2": optimizer.betas[1],
        "eps": optimizer.eps,
        "weight decay": optimizer.weight_decay,
    }
    for name in _HAS.get(optimizer.name, ()):
        # two groups with rates of their own have a third and fourth without decay
        none = (
            (0.0,) if name == "weight decay" and lora is not None and lora.b_lr_ratio != 1 else ()
        )
        yield name, (values[name], *none)


def _nearest(value: float, wanted: Sequence[float]) -> tuple[float, float]:
    """The wanted value that is nearest, and the relative distance to it."""
    found = min(wanted, key=lambda each: abs(value - each))
    return found, abs(value - found) / max(abs(found), 1e-30) if value != found else 0.0
