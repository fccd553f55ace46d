"""Seconds of the passes of one micro batch: a roofline over the profile's own operations.

Matrix products are charged for FLOPs and bytes, attention for its scores, everything else for the
bytes that it moves, and each operation for its launch. An accelerator computes while the host
launches, so that the longer of the two counts; on a CPU they are one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from dslm.cluster.speed import Speed
from dslm.profile.levels import LAYER, ById
from dslm.profile.polynomial import monomials
from dslm.profile.value import Part, PassProfile

# A kernel with a mask reaches about half of one that skips what is masked (FlashAttention-2,
# arXiv 2307.08691, figure 5: xformers, which PyTorch calls the efficient kernel).
MASKED = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a stretch of a pass does, in all."""

    product_flops: float = 0.0
    product_bytes: float = 0.0
    scores: float = 0.0  # FLOPs of attention
    masked: float = 0.0  # of those, with a mask
    moved: float = 0.0  # bytes of every other operation
    launches: float = 0.0

    @property
    def flops(self) -> float:
        """FLOPs of all."""
        return self.product_flops + self.scores

    def seconds(self, speed: Speed, *, on_cpu: bool, share: float = 1.0) -> float:
        """Seconds of it, of which this rank does a share."""
        attended = self.scores + (0.0 if on_cpu else self.masked * (1 / MASKED - 1))
        computing = share * (
            self.product_flops / speed.products
            + self.product_bytes / speed.product_bytes
            + attended / speed.attention
            + self.moved / speed.memory
        )
        launching = self.launches * speed.launch
        return computing + launching if on_cpu else max(computing, launching)


@dataclass(frozen=True, slots=True)
class Pass:
    """The work of a pass, that of the layers apart: tensor parallelism shares it."""

    layers: Work
    rest: Work

    def seconds(self, speed: Speed, *, on_cpu: bool, tensor: int = 1, sequence: int = 1) -> float:
        """Seconds of the pass on a rank."""
        return self.layers.seconds(
            speed, on_cpu=on_cpu, share=1 / (tensor * sequence)
        ) + self.rest.seconds(speed, on_cpu=on_cpu, share=1 / sequence)


@functools.lru_cache(maxsize=4096)  # the search asks for the same pass under every strategy
def passes(key: ById, mode: str, samples: int, length: int) -> tuple[Pass, Pass]:
    """Return the work of a forward and a backward pass (empty in an evaluation)."""
    one = key.profile.pass_of(mode, samples)
    return _pass(one, one.forward, samples, length), _pass(one, one.backward, samples, length)


def _pass(one: PassProfile, sequence: Sequence[tuple[int, int]], samples: int, length: int) -> Pass:
    walked = list(one.walk(tuple(sequence)))
    return Pass(
        _work([each for each in walked if each[0].name == LAYER], samples, length),
        _work([each for each in walked if each[0].name != LAYER], samples, length),
    )


def _work(parts: list[tuple[Part, int]], samples: int, length: int) -> Work:
    at = monomials(samples, length)
    flops, moved, launches = dict.fromkeys(_KINDS, 0.0), dict.fromkeys(_KINDS, 0.0), 0.0
    masked = 0.0
    for part, count in parts:
        for work in part.work:
            done = count * work.flops.at(at)
            flops[work.kind] += done
            moved[work.kind] += count * work.moved.at(at)
            launches += count * work.launches.at(at)
            if work.kind == "attention" and any(work.moved.of[n] for n in _SQUARES):
                masked += done
    return Work(
        product_flops=flops["matmul"],
        product_bytes=moved["matmul"],
        scores=flops["attention"],
        masked=masked,
        moved=moved["memory"],
        launches=launches,
    )


_KINDS = ("matmul", "attention", "memory")
_SQUARES = (0, 3)  # of the monomials, those with the square of the length
