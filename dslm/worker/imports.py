"""The libraries of a rank, imported without what its training never uses.

Both sides of a second: `datasets` (with pandas) and peft are imported by transformers' Trainer as
soon as they are installed, and DeepSpeed compiles Muon's kernels, for which it loads all of
torch's inductor, to find out that an optimizer isn't Muon.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from dslm.recipe.schema import Recipe

P = ParamSpec("P")
R = TypeVar("R")

# Tasks that transformers' own Trainer trains; TRL's are made of `datasets`, and know adapters.
_PLAIN = frozenset({"pretrain", "mlm", "sft", "seq2seq", "classify", "vision", "sequence"})
_MUON = "deepspeed.runtime.zero.muon.original_muon"


def import_libraries(recipe: Recipe) -> None:
    """Import transformers' Trainer and DeepSpeed for a training."""
    with _absent(unused(recipe)):
        from transformers import Trainer  # noqa: F401
    import torch

    compile_at_once = torch.compile
    torch.compile = _compiled_when_called  # type: ignore[assignment]
    try:
        importlib.import_module(_MUON)
    finally:
        torch.compile = compile_at_once  # type: ignore[assignment]


def unused(recipe: Recipe) -> tuple[str, ...]:
    """Packages that transformers may take as not installed, for a training.

    A model that is loaded may be an adapter, which needs peft whatever the recipe says.
    """
    if recipe.task not in _PLAIN or recipe.lora is not None:
        return ()
    return ("datasets",) if recipe.model.init == "pretrained" else ("datasets", "peft")


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """Let packages be as if not installed; whoever imports them after the block has them.

    None in sys.modules says so to `import` and to find_spec; transformers asks once in a process.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _compiled_when_called(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compile, put off to the first call."""
    import torch

    @functools.cache
    def compiled() -> Callable[P, R]:
        return torch.compile(function)

    @functools.wraps(function)
    def call(*args: P.args, **settings: P.kwargs) -> R:
        return compiled()(*args, **settings)

    return call
