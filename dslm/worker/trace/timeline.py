"""Follow a forward and backward pass: bytes alive after each operation, FLOPs, what it moved.

What comes in are the operations themselves, through a dispatch mode; what goes out is a list of
stretches (`Stretch`), cut where the caller says. Parameters and buffers aren't counted. A gradient
of a parameter is counted apart from the moment it is complete: what becomes of it is DeepSpeed's.

Beside each level stands the one under stage 3, where a frozen weight keeps the input that it was
multiplied with: a token stands for it, and lives as long as what was saved would.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Point(NamedTuple):
    """A moment of a stretch; bytes relative to its start."""

    level: int
    gradients: int
    held: int  # under stage 3 beyond the level


@dataclass(slots=True)
class Stretch:
    """A part of a pass: the levels after its operations, relative to its start, and its work."""

    name: str
    start: int
    start_held: int = 0
    points: list[Point] = field(default_factory=lambda: [Point(0, 0, 0)])
    work: list[tuple[str, int, int]] = field(default_factory=list)  # operation, FLOPs, bytes
    end: int = 0  # bytes alive at the end, relative to the start
    end_held: int = 0
    gradients: int = 0  # bytes of parameters' gradients that were completed in it
    split: int = 0  # of `end`, what isn't as wide as the hidden state: ranks could share it


@dataclass(slots=True)
class _Storage:
    """What stage 3 would hold of a storage."""

    tokens: int = 0
    gone: int = 0  # its bytes, once nothing else holds it


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
        self._quiet = False  # what is done is no part of the pass
        self._held = 0  # bytes that only stage 3 would still have
        self._storages: dict[int, _Storage] = {}

    def cut(self, name: str) -> None:
        """End the current stretch and begin another."""
        self.close()
        self.stretches.append(Stretch(name, self.level, self._held))

    def close(self) -> None:
        """End the current stretch."""
        if self.stretches:
            last = self.stretches[-1]
            last.end = self.level - last.start
            last.end_held = self._held - last.start_held
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
            self._point(last)
        parameter.grad = None

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a token of a tensor: while it lives, stage 3 has the tensor's memory."""
        key = tensor.untyped_storage()._cdata
        held = self._storages.setdefault(key, _Storage()) if self._known.get(key) else _Storage()
        held.tokens += 1
        self._quiet = True
        token = tensor.new_empty(0)
        self._quiet = False
        storage = token.untyped_storage()
        self._known[storage._cdata] = 0
        weakref.finalize(storage, self._let_go, storage._cdata, held)
        return token

    def _let_go(self, token: int, held: _Storage) -> None:
        self._known.pop(token, None)
        held.tokens -= 1
        if not held.tokens:
            self._held -= held.gone

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
        if func.namespace == "prim" or self._quiet:
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        fresh = sum([self._add(tensor) for tensor in made])  # a list: each must be seen
        if not self.stretches:
            return result
        last = self.stretches[-1]
        if fresh:
            self._point(last)
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

    def _point(self, last: Stretch) -> None:
        level, held = self.level - last.start, self._held - last.start_held
        last.points.append(Point(level, last.gradients, held))

    def _gone(self, key: int) -> None:
        size = self._known.pop(key, 0)
        self.level -= size
        self._made.pop(key, None)
        held = self._storages.pop(key, None)
        if held is not None and held.tokens:
            held.gone = size
            self._held += size


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _bytes(tensor: torch.Tensor) -> int:
    """What reading or writing a tensor moves: of an expanded one, what lies behind it."""
    return int(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))


def _kind(func: Any, flops: int) -> str:
    return "matmul" if flops else "memory"
