"""Fake tensors for what has an activation's or a weight's size, real ones for what is read of ids.

The code of many models asks for values: how long is the longest sample, where does each end, is
there padding at all? They are those of token ids, masks and positions, which are small and need
no weights. So they are computed, and what has a weight's size or an activation's has only a shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils import import_utils

_aten = torch.ops.aten
# operations whose second argument are indices; of true and false where many shapes could come out
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
# operations that make what the numbers are that they are given
_BY_NUMBERS = (_aten.arange, _aten.full)


@contextmanager
def faking(mode: FakeTensorMode) -> Iterator[None]:
    """Run operations on shapes, but compute those on values that there are.

    Not all of them are what they would be: no sample here is shorter than the others, and
    transformers shall not leave out the mask that it would make for such.
    """
    with mode, _Values(), _nothing_to_read():
        yield


@contextmanager
def on_meta() -> Iterator[None]:
    """Make tensors without memory, and let transformers ask none for its values."""
    with torch.device("meta"), _nothing_to_read():
        yield


def _nothing_to_read() -> AbstractContextManager[Any]:
    """Let transformers take every mask for one whose values can't be asked."""
    return mock.patch.object(import_utils, "is_fake_tensor", lambda _: True)


class _Values(TorchDispatchMode):
    """Computes what is made of tensors with values; enter it inside a FakeTensorMode."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if all(map(_is_real, tensors)) and (tensors or _makes_whole(func, args, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func._overloadpacket in _INDEXED:
            args = (args[0], _numbered(args[1]), *args[2:])
        return func(*args, **kwargs)


def _is_real(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values."""
    return not isinstance(tensor, FakeTensor | torch.nn.Parameter) and not tensor.is_meta


def _makes_whole(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation without tensors makes whole numbers on a CPU."""
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    if device is not None and torch.device(device).type != "cpu":
        return False
    if dtype is None:  # that of the numbers it is given
        numbers = [leaf for leaf in tree_leaves(args) if isinstance(leaf, int | float)]
        return func._overloadpacket in _BY_NUMBERS and all(isinstance(n, int) for n in numbers)
    return not (dtype.is_floating_point or dtype.is_complex)


def _numbered(indices: Any) -> list[Any]:
    """Return indices with those of true and false as the numbers of what is true."""
    found: list[Any] = []
    for one in indices:
        if isinstance(one, torch.Tensor) and one.dtype == torch.bool and _is_real(one):
            with unset_fake_temporarily():
                found += one.nonzero().unbind(1)
        else:
            found.append(one)
    return found
