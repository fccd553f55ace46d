"""SuperOffload on a CPU, where DeepSpeed refuses it: for measuring what it keeps, not to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class _Stream:
    """A CPU's stream, which has nothing to wait for."""

    def synchronize(self) -> None:
        """Return at once."""


@contextmanager
def on_a_cpu() -> Iterator[None]:
    """Leave DeepSpeed's check for CUDA out, and give the CPU the one call that it lacks."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.superoffload import superoffload_stage3

    accelerator: Any = get_accelerator()
    with (
        mock.patch.object(superoffload_stage3, "_validate_superoffload_accelerator", lambda: None),
        mock.patch.object(accelerator, "current_stream", lambda *_: _Stream()),
    ):
        yield
