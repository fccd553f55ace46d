"""The optimizer's own rule, fed with a layout's gradients: what each update should be.

The rule is applied to whole parameters in one process, in fp32. It knows nothing of partitions, so
an optimizer whose update depends on them doesn't follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from dslm.recipe.schema import Optimizer, Recipe
from dslm.worker.number_formats import DTYPES
from dslm.worker.verify.compare import Difference, Step, difference, ratio_of
from dslm.worker.verify.noise import FACTOR
from dslm.worker.verify.reference import Tensors

_UPDATE = 1e-3  # of an update in fp32 from the same gradient
# of Muon's update: its products are in 16 bits where the device has them
_PRODUCTS = 5e-2
_ULP = 2.0**-22  # of a parameter kept in fp32
_ITERATIONS, _MOMENTUM = 5, 0.95  # of Muon (DeepSpeed, runtime/zero/muon/original_muon.py)
_LEAST_CLIPPED = 0.5  # of an update of Adafactor: how far its own clipping goes in a few steps

Rule = Callable[[Optimizer, Tensors, torch.Tensor, torch.Tensor, int], torch.Tensor]


def _adam(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Adam with L2 (arXiv 1412.6980), and AdamW (arXiv 1711.05101, algorithm 2)."""
    apart = given.name == "adamw"
    if not apart:
        gradient = gradient + given.weight_decay * before
    one, two = given.betas
    first = one * state.get("first", torch.zeros_like(before)) + (1 - one) * gradient
    second = two * state.get("second", torch.zeros_like(before)) + (1 - two) * gradient**2
    state |= {"first": first, "second": second}
    mean = first / (1 - one**steps)
    root = (second / (1 - two**steps)).sqrt() + given.eps
    decayed = given.lr * given.weight_decay * before if apart else 0.0
    return -given.lr * mean / root - decayed


def _sgd(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    return -given.lr * (gradient + given.weight_decay * before)


def _lion(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Lion (arXiv 2302.06675, algorithm 2)."""
    one, two = given.betas
    mean = state.get("first", torch.zeros_like(before))
    state["first"] = two * mean + (1 - two) * gradient
    direction = (one * mean + (1 - one) * gradient).sign()
    state["still"] = direction == 0
    return -given.lr * (direction + given.weight_decay * before)


def _muon(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Muon of a matrix, with Nesterov's momentum (the same file, muon_update)."""
    mean = _MOMENTUM * state.get("first", torch.zeros_like(before)) + (1 - _MOMENTUM) * gradient
    state["first"] = mean
    ahead = _MOMENTUM * mean + (1 - _MOMENTUM) * gradient
    rows, columns = before.shape[-2:]
    turned = _orthogonal(ahead) * math.sqrt(max(1.0, rows / columns))
    return -given.lr * (turned + given.weight_decay * before)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, about, by iterations of Newton and Schulz."""
    wide = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        products = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * products + 2.0315 * products @ products) @ wide
    return wide.mT if matrix.shape[-2] > matrix.shape[-1] else wide


def _beside_muon(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """What updates the parameters that Muon doesn't: AdamW as it is without settings."""
    known = {"name": "adamw", "betas": (0.9, 0.95), "eps": 1e-10}
    return _adam(given.model_copy(update=known), state, before, gradient, steps)


def _adafactor(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Adafactor (arXiv 1804.04235, algorithm 4) with a given learning rate and no momentum."""
    if before.dim() < 2:
        update = _by_root(state, gradient, steps)
    else:
        old, squared = 1 - steps**-0.8, gradient**2 + 1e-30
        rows, columns = squared.mean(-1), squared.mean(-2)
        rows = old * state.get("rows", torch.zeros_like(rows)) + (1 - old) * rows
        columns = old * state.get("columns", torch.zeros_like(columns)) + (1 - old) * columns
        state |= {"rows": rows, "columns": columns}
        share = (rows / rows.mean(-1, keepdim=True)).rsqrt()
        update = gradient * share[..., None] * columns.rsqrt()[..., None, :]
    update = update / max(1.0, float(update.norm()) / math.sqrt(update.numel()))
    return -given.lr * (update + given.weight_decay * before)


def _adafactor_of_parts(
    given: Optimizer, state: Tensors, before: torch.Tensor, gradient: torch.Tensor, steps: int
) -> torch.Tensor:
    """Adafactor of flat parts of parameters: it factors nothing, and clips what a rank has."""
    return -given.lr * (_by_root(state, gradient, steps) + given.weight_decay * before)


def _by_root(state: Tensors, gradient: torch.Tensor, steps: int) -> torch.Tensor:
    old = 1 - steps**-0.8
    second = old * state.get("second", torch.zeros_like(gradient)) + (1 - old) * gradient**2
    state["second"] = second
    return gradient * (second + 1e-30).rsqrt()


RULES: Mapping[str, Rule] = {
    "adamw": _adam, "adam": _adam, "sgd": _sgd, "lion": _lion, "muon": _beside_muon,
    "adafactor": _adafactor,
}  # fmt: skip


class Updates:
    """The rule of a recipe's optimizer, and what it keeps of each parameter."""

    def __init__(
        self, recipe: Recipe, stage: int = 0, decayed: frozenset[str] | None = None
    ) -> None:
        """Take on a recipe's optimizer.

        Args:
            recipe: what is learnt.
            stage: of ZeRO; from 1 on optimizers see flat parts of parameters.
            decayed: the parameters that transformers' optimizers decay; None: all.
        """
        self._optimizer = recipe.optimizer
        self._ratio = recipe.lora.b_lr_ratio if recipe.lora is not None else 1.0
        self._half = recipe.precision != "fp32"
        self._format = DTYPES[recipe.precision]
        self._flat = stage > 0 and recipe.optimizer.name == "adafactor"
        self._decayed = decayed if recipe.optimizer.name == "adafactor" else None
        self._rule = _adafactor_of_parts if self._flat else RULES.get(recipe.optimizer.name)
        self._state: dict[str, Tensors] = {}
        self._steps = 0

    @property
    def knows(self) -> bool:
        """Whether the rule of this recipe's optimizer is known here."""
        return self._rule is not None

    def compare(
        self, step: Step, number: int, whole: Tensors | None = None, rate: float | None = None
    ) -> list[Difference]:
        """Compare each parameter's update with the rule; every step must be given, in order.

        Args:
            step: what was recorded.
            number: its number, from 1.
            whole: gradients in one process, for those that the engine doesn't show.
            rate: the learning rate; None: the recipe's.
        """
        if self._rule is None:
            return []
        self._steps += 1
        gradients = dict(step.gradients)
        gradients |= {name: (whole or {})[name] for name in step.unknown if name in (whole or {})}
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients.values()))
        clip = self._optimizer.grad_clip
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        differences = []
        for name, before in step.before.items():
            after = step.after.get(name)
            # in 16 bits a gradient's noise is no longer small once it was made orthogonal
            if after is None or (name in step.unknown and self._half):
                continue
            gradient = gradients.get(name)
            wanted, allowed = torch.zeros_like(before), _UPDATE
            if gradient is not None:
                wanted, allowed = self._wanted(step, name, gradient * scale, rate)
            found = after.double() - before.double()
            if self._flat:
                wanted = _within(found, wanted.double())
            still = self._state.get(name, {}).get("still")
            if still is not None:
                given = rate if rate is not None else self._optimizer.lr
                wanted = torch.where(still, _by_sign_of_zero(found, wanted, given), wanted)
            slack = _ULP * float(before.double().norm())
            far = float((found - wanted.double()).norm())
            size = max(float(wanted.double().norm()), 1e-30)
            if not far <= allowed * size + slack:
                ratio = ratio_of(found, wanted)
                differences.append(difference("update", name, number, far / size, allowed, ratio))
        return differences

    def _wanted(
        self, step: Step, name: str, gradient: torch.Tensor, rate: float | None
    ) -> tuple[torch.Tensor, float]:
        """The update that follows from a gradient, and how far it may be off.

        Muon makes what is faint in a gradient as large as the rest, so in 16 bits it is measured
        how far rounding the gradient leads.
        """
        before = step.before[name]
        faster = self._ratio if "lora_B" in name or before.dim() == 1 else 1.0
        own = {"lr": (rate if rate is not None else self._optimizer.lr) * faster}
        if self._decayed is not None and name not in self._decayed:
            own["weight_decay"] = 0.0
        rule = _muon if name in step.muon else self._rule
        if rule is None:
            raise ValueError("the optimizer has no rule")
        given = self._optimizer.model_copy(update=own)
        state = self._state.setdefault(name, {})
        before_it = dict(state)
        wanted = rule(given, state, before, gradient, self._steps)
        if name not in step.muon:
            return wanted, _UPDATE
        # of one and a half times the gradient, which was rounded itself
        rounded = (1.5 * gradient).to(self._format).to(gradient.dtype) / 1.5
        other = rule(given, before_it, before, rounded, self._steps)
        far = float((other - wanted).norm()) / max(float(wanted.norm()), 1e-30)
        return wanted, max(_PRODUCTS, FACTOR * far)


def _by_sign_of_zero(found: torch.Tensor, wanted: torch.Tensor, rate: float) -> torch.Tensor:
    """An update of Lion without a direction, which DeepSpeed's for CPUs makes by the sign of zero.

    Source: DeepSpeed, csrc/lion/cpu_lion_impl.cpp, 0.19.8.
    """
    apart = (found - wanted).abs()
    return torch.where(apart <= (1 + _UPDATE) * rate, found, wanted.double())


def _within(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """An update that was clipped together with others, as far as that may be.

    Under ZeRO, Adafactor clips the update of all that a rank has of a group at once.
    """
    share = torch.where(wanted == 0, 1.0, found / wanted)
    return wanted * share.clamp(_LEAST_CLIPPED, 1.0)
