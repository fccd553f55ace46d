"""What the files of a pretrained model hold, by their headers and a few rows.

The report of a load doesn't say everything: numbers of any kind are taken for weights, and a head
that should be the table is tied or not, as the files and the ZeRO stage have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

_CONFIG = "config.json"
_WHOLE = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
_ROWS = 64  # of a tensor, that are compared at its beginning and at its end


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One tensor of a file: where it is, and its kind of numbers."""

    file: Path
    kind: str


def tensors_in_files(name: str, revision: str | None) -> Mapping[str, Stored]:
    """Return the tensors of a model that was loaded, by name; only of safetensors files."""
    try:
        config = cached_file(name, _CONFIG, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return {}
    return _tensors_in(Path(config).parent) if config is not None else {}


def whole_numbers(tensors: Mapping[str, Stored], model: Any) -> tuple[str, ...]:
    """Name the parameters that whole numbers stand for, which a load takes as if they were weights.

    A model in few bits, whose config says so, has such.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return ()
    known = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    base = f"{getattr(model, 'base_model_prefix', '')}."
    return tuple(
        name
        for name in sorted(known)
        for stored in [tensors.get(name) or tensors.get(name.removeprefix(base))]
        if stored is not None and stored.kind in _WHOLE
    )


def wrongly_tied(tensors: Mapping[str, Stored], model: Any) -> Iterator[tuple[str, str]]:
    """Find parameters that a model has as one and its files as two, with other values."""
    for one, other in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if one in tensors and other in tensors and _differ(tensors, one, other):
            yield one, other


def _differ(tensors: Mapping[str, Stored], one: str, other: str) -> bool:
    first, second = (_some_rows(tensors[name].file, name) for name in (one, other))
    return first.shape != second.shape or not torch.equal(first.float(), second.float())


def _some_rows(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        rows = opened.get_slice(name)
        count = rows.get_shape()[0] if rows.get_shape() else 0
        return torch.cat([rows[:_ROWS], rows[max(0, count - _ROWS) :]]) if count else torch.zeros(0)


@cache
def _tensors_in(folder: Path) -> Mapping[str, Stored]:
    found: dict[str, Stored] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    found[name] = Stored(file=file, kind=opened.get_slice(name).get_dtype())
        except (OSError, SafetensorError):  # the load itself says what is wrong with it
            continue
    return found
