"""Follow a forward and backward pass: bytes alive after each operation, FLOPs, what it moved.

What comes in are the operations themselves, through a dispatch mode; what goes out is a list of
stretches (`Stretch`), cut where the caller says. Parameters and buffers aren't counted. A gradient
of a parameter is counted apart from the moment it is complete: what becomes of it is DeepSpeed's.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(slots=True)
class Stretch:
    """A part of a pass: the levels after its operations, relative to its start, and its work."""

    name: str
    start: int
    points: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    work: list[tuple[str, int, int]] = field(default_factory=list)  # operation, FLOPs, bytes
    end: int = 0  # bytes alive at the end, relative to the start
    gradients: int = 0  # bytes of parameters' gradients that were completed in it
    split: int = 0  # of `end`, what isn't as wide as the hidden state: ranks could share it


class Timeline(TorchDispatchMode):
    """Records what is alive; enter it inside a FakeTensorMode."""

    def __init__(self) -> None:
        super().__init__()
        self.level = 0
        self.stretches: list[Stretch] = []
        self.width = 0  # of the hidden state
        self.drops = False  # whether dropout was asked for: a CPU has other kernels for it
        self._known: dict[int, int] = {}
        self._made: dict[int, int] = {}  # in the current stretch, as wide as something else

    def cut(self, name: str) -> None:
        """End the current stretch and begin another."""
        self.close()
        self.stretches.append(Stretch(name, self.level))

    def close(self) -> None:
        """End the current stretch."""
        if self.stretches:
            last = self.stretches[-1]
            last.end = self.level - last.start
            last.split = sum(self._made.values())
            self._made.clear()

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Don't count these, which live all the time."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = 0

    def set_gradient_apart(self, parameter: torch.Tensor) -> None:
        """Count a complete gradient as one, and let it go (a hook after its accumulation)."""
        if parameter.grad is None:
            return
        key = parameter.grad.untyped_storage()._cdata
        self.level -= self._known.get(key, 0)
        self._known[key] = 0
        if self.stretches:
            last = self.stretches[-1]
            last.gradients += parameter.numel() * parameter.element_size()
            last.points.append((self.level - last.start, last.gradients))
        parameter.grad = None

    def attended(self, flops: int, moved: int) -> None:
        """Count the work of an attention kernel, which no operation shows."""
        if self.stretches:
            self.stretches[-1].work.append(("attention", flops, moved))

    @contextmanager
    def standing_for(self, times: float) -> Iterator[None]:
        """Count the work that is done meanwhile so many times: it stands for more of its kind."""
        last = self.stretches[-1] if self.stretches else None
        begin = len(last.work) if last else 0
        yield
        if last:
            last.work[begin:] = [
                (kind, int(flops * times), int(moved * times))
                for kind, flops, moved in last.work[begin:]
            ]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        fresh = sum([self._add(tensor) for tensor in made])  # a list: each must be seen
        if not self.stretches:
            return result
        last = self.stretches[-1]
        if fresh:
            last.points.append((self.level - last.start, last.gradients))
        if fresh or func._schema.is_mutable:
            moved = sum(_bytes(t) for t in [*_tensors((args, kwargs)), *made])
            count = flop_registry.get(func._overloadpacket)
            flops = int(count(*args, **(kwargs or {}), out_val=result)) if count else 0
            last.work.append((_kind(func, flops), flops, moved))
        return result

    def _add(self, tensor: torch.Tensor) -> bool:
        """Follow a tensor's storage to its end; whether it is a new one."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        self._known[key] = storage.nbytes()
        weakref.finalize(storage, self._gone, key)
        self.level += storage.nbytes()
        if tensor.ndim and tensor.shape[-1] != self.width:
            self._made[key] = storage.nbytes()
        return True

    def _gone(self, key: int) -> None:
        self.level -= self._known.pop(key, 0)
        self._made.pop(key, None)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _bytes(tensor: torch.Tensor) -> int:
    """What reading or writing a tensor moves: of an expanded one, what lies behind it."""
    return int(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))


def _kind(func: Any, flops: int) -> str:
    return "matmul" if flops else "memory"
