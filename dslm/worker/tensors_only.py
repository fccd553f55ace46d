"""Within `tensors_only` nothing that is loaded from a file runs code, whoever loads it.

DeepSpeed loads its checkpoints, converts them and reads the converted ones with
`weights_only=False`, in some thirty places. torch has a switch that holds for every call in a
process, and a list of types that are harmless; this sets both. What it can't know is whether a
checkpoint is the user's own, so it asks nobody: `--trust-checkpoint` leaves it out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, EnumType
from pickle import UnpicklingError
from typing import Any

import torch

from dslm import environment
from dslm.run.pickles import STATE_CLASSES


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let `torch.load` make tensors, plain values and DeepSpeed's own harmless types only."""
    before = os.environ.get(environment.WEIGHTS_ONLY)
    os.environ[environment.WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(_harmless()):
            yield
    finally:
        if before is None:
            del os.environ[environment.WEIGHTS_ONLY]
        else:
            os.environ[environment.WEIGHTS_ONLY] = before


def _harmless() -> list[Any]:
    known = []
    for name in STATE_CLASSES:
        module, _, member = name.rpartition(".")
        known.append(getattr(importlib.import_module(module), member))
    # some versions of Python (3.11.2) pickle the member of an enum as getattr(enum, name)
    return [*known, *((_member, f"{module}.getattr") for module in ("builtins", "__builtin__"))]


def _member(kind: object, name: str) -> Enum:
    """Replace `getattr` in a checkpoint: return the member of an enum, and nothing else."""
    if not isinstance(kind, EnumType):
        raise UnpicklingError(f"a checkpoint asks for the attribute `{name}` of {kind!r}")
    member: Enum = kind[name]
    return member
