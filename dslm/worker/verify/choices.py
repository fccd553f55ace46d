"""What a model chooses by scores, experts above all: kept, repeated, or chosen by scores a bit off.

Numbers that are rounded another way send a token whose scores are nearly alike to another expert.
That is a leap: no small error of the rest shows how far it goes, so it is measured by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Call = tuple[int, int]  # the place of a sample, and which of its choices in turn
_FIRST_OF = (torch.argmax, torch.Tensor.argmax)
_CHOOSE = (torch.topk, torch.Tensor.topk, *_FIRST_OF)


class Choices(TorchFunctionMode):
    """While it is entered, choices are kept by sample and turn; weights are always by the scores.

    Source: transformers' mixtures choose by `topk` or `argmax` (models/*/modeling_*.py, 5.23), and
    so does attention that looks at a few tokens.
    """

    def __init__(
        self, like: Choices | None = None, off: Mapping[Call, float] | None = None, seed: int = 0
    ) -> None:
        """Choose anew, or again.

        Args:
            like: choices that are repeated; None: each is made by its own scores.
            off: how far scores are off before the choice is made by them, by call.
            seed: of the numbers that they are off by.
        """
        super().__init__()
        self.scores: dict[Call, torch.Tensor] = {}
        self.chosen: dict[Call, torch.Tensor] = {}
        self._like = like.chosen if like is not None else {}
        self._off = off or {}
        self._draws = torch.Generator().manual_seed(seed)
        self._place, self._turn = 0, 0

    def of(self, place: int) -> None:
        """Go on with a sample, from its first choice."""
        self._place, self._turn = place, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, with other choices where it makes one."""
        given = dict(kwargs or {})
        found = func(*args, **given)
        scores = args[0] if args else None
        if func not in _CHOOSE or not isinstance(scores, torch.Tensor):
            return found
        if not scores.is_floating_point():
            return found
        first = func in _FIRST_OF
        call = (self._place, self._turn)
        self._turn += 1
        chosen = found if first else found.indices
        if call in self._off:
            noise = torch.randn(scores.shape, generator=self._draws) * self._off[call]
            again = func(scores.detach().float() + noise.to(scores.device), *args[1:], **given)
            chosen = again if first else again.indices
        elif call in self._like and self._like[call].shape == chosen.shape:
            chosen = self._like[call]
        self.scores[call], self.chosen[call] = scores.detach().float(), chosen
        if first:
            return chosen
        axis = given.get("dim", args[2] if len(args) > 2 else -1)
        return torch.return_types.topk((scores.gather(axis, chosen), chosen))


def off_by(exact: Choices, own: Choices, precision: torch.dtype) -> dict[Call, float]:
    """How far scores in a number format are from exact ones, by call: root mean square.

    Args:
        exact: choices by scores in fp32.
        own: the same choices beside scores in the format.
        precision: the format, whose rounding of a score is the least.
    """
    found = {}
    for call, scores in exact.scores.items():
        other = own.scores.get(call)
        if other is None or other.shape != scores.shape:
            continue
        real = scores.isfinite() & other.isfinite()
        if real.any():
            usual = _root_mean_square(scores[real])
            measured = _root_mean_square(scores[real] - other[real])
            found[call] = max(measured, torch.finfo(precision).eps * usual)
    return found


def _root_mean_square(values: torch.Tensor) -> float:
    return math.sqrt(float(values.double().pow(2).mean()))
