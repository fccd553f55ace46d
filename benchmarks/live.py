"""How many bytes of tensors are alive, and the most since a phase began.

A dispatch mode sees every tensor that an operation makes and follows its storage to its end. It
knows nothing of what an operation uses inside, nor of memory that isn't a tensor's.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts bytes of live storages; meta tensors have none.

    Args:
        explain: remember where each storage was made, for `report`; slow.
    """

    def __init__(self, *, explain: bool = False) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        self._made: dict[int, str] = {}
        self._explain = explain
        self._watched: int | None = None
        self._seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if hasattr(leaf, "untyped_storage"):
                self._add(leaf, func)
        return result

    def _add(self, tensor: Any, func: Any) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = size
        weakref.finalize(storage, self._gone, key)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self._explain:
            self._made[key] = f"{tuple(tensor.shape)} {tensor.dtype} {func} {_site()}"
            if self._watched is not None and self.now >= self._watched and not self._seen:
                for known, nbytes in self._known.items():
                    self._seen[self._made[known]] += nbytes

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)
        self._made.pop(key, None)

    def leave_out(self, tensors: Iterable[Any]) -> None:
        """Don't count these, which live all the time."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = 0

    def start_phase(self, watched: int | None = None) -> None:
        """Forget the peak so far; remember what is alive when `watched` bytes are, for `report`."""
        self.peak, self._watched, self._seen = self.now, watched, Counter()

    def report(self, rows: int = 30) -> str:
        """What was alive at the watched peak, the largest first."""
        return "\n".join(
            f"{n / 2**20:9.3f} MiB  {what}" for what, n in self._seen.most_common(rows)
        )


def _site() -> str:
    """The innermost lines of libraries that made a tensor."""
    frame: FrameType | None = sys._getframe(3)
    found: list[str] = []
    while frame is not None and len(found) < 4:
        file = frame.f_code.co_filename
        if "/torch/" not in file and "live.py" not in file:
            found.append(f"{file.rsplit('/', 1)[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)
