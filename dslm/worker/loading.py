"""What of a pretrained model is not loaded: the report of `from_pretrained`, judged.

A parameter that the files lack is drawn at random, and trains on in silence; so is one of another
shape or of no elements. Only those that the recipe names may be (`model.new_parameters`). The
report is of a load without values, on the meta device: it costs no memory, says the same at every
ZeRO stage, and is there before anything is partitioned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, modeling_utils

from dslm.errors import RecipeError, Where, did_you_mean, shortened

# what loading a model's files raises where they are missing, not whole, or of another kind
UNLOADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError)
_KEY = "model.new_parameters"
_SHOWN = 8  # kinds of parameters that are named
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # of a layer, an expert
_ANOTHER_MODEL = 0.5  # share of parameters not found, from which the files are another model's


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """A parameter that has another shape in the files."""

    name: str
    in_files: tuple[int, ...]
    in_model: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether the files hold a tensor without elements: saved while it was partitioned."""
        return 0 in self.in_files


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingReport:
    """What a load found: names of the model's parameters, and of tensors that are none."""

    parameters: tuple[str, ...]
    base: str = ""  # the prefix of what isn't a head
    missing: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    whole: tuple[str, ...] = ()  # that the files have whole numbers for
    unexpected: tuple[str, ...] = ()
    size: int = 0  # bytes of the model

    @classmethod
    def of(cls, model: PreTrainedModel, info: Mapping[str, Any]) -> LoadingReport:
        """Return the report of a model that was loaded, from transformers' own."""
        shapes = [
            Mismatch(name=name, in_files=tuple(found), in_model=tuple(wanted))
            for name, found, wanted in info["mismatched_keys"]
        ]
        known = {one.name for one in shapes}
        hollow = [
            Mismatch(name=name, in_files=(0,), in_model=(0,))
            for name, parameter in model.named_parameters()
            if name not in known and not getattr(parameter, "ds_numel", parameter.numel())
        ]
        return cls(
            parameters=tuple(name for name, _ in model.named_parameters()),
            base=getattr(model, "base_model_prefix", ""),
            missing=tuple(sorted(info["missing_keys"])),
            mismatched=tuple(sorted([*shapes, *hollow], key=lambda one: one.name)),
            unexpected=tuple(sorted(info["unexpected_keys"])),
            size=sum(
                int(getattr(p, "ds_numel", p.numel())) * p.element_size()
                for p in model.parameters()
            ),
        )

    def unnamed(self, patterns: Sequence[str]) -> LoadingReport:
        """Leave out the parameters that a recipe names as new."""
        return LoadingReport(
            parameters=self.parameters,
            base=self.base,
            missing=tuple(name for name in self.missing if not _matches(name, patterns)),
            mismatched=tuple(m for m in self.mismatched if not _matches(m.name, patterns)),
            whole=tuple(name for name in self.whole if not _matches(name, patterns)),
            unexpected=self.unexpected,
            size=self.size,
        )

    @property
    def new(self) -> tuple[str, ...]:
        """Names of what would be drawn at random."""
        return (*self.missing, *(one.name for one in self.mismatched), *self.whole)


def check_loaded(report: LoadingReport, source: str, patterns: Sequence[str]) -> None:
    """Check that everything was loaded but what the recipe names as new.

    Args:
        report: what the load found.
        source: the model's name, for the message.
        patterns: `model.new_parameters`.

    Raises:
        RecipeError: with the names, how many they are, and what to do.
    """
    left = report.unnamed(patterns)
    if not left.new:
        return
    one = len(left.new) == 1
    raise RecipeError(
        f"{len(left.new)} of {len(report.parameters)} parameters of `{source}` "
        f"{'was' if one else 'were'} not loaded and would start from random values: "
        + "; ".join(_details(left)),
        where=Where(key="model.name"),
        hint=_what_to_do(left),
    )


def check_patterns(report: LoadingReport, patterns: Sequence[str]) -> None:
    """Check that each pattern of `model.new_parameters` names a parameter.

    Raises:
        RecipeError: one doesn't.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*report.parameters, *report.new)):
            raise RecipeError(
                f"no parameter of the model matches `{pattern}`",
                where=Where(key=_KEY),
                hint=did_you_mean(pattern, _patterns(report.parameters))
                or f"its parameters are {_listed(report.parameters)}",
            )


def _details(left: LoadingReport) -> Iterator[str]:
    hollow = [one.name for one in left.mismatched if one.empty]
    shapes = [one for one in left.mismatched if not one.empty]
    for what, names in (("not in the files", left.missing), ("empty in the files", hollow)):
        if names:
            yield f"{what} ({len(names)}): {_listed(names)}"
    if shapes:
        said = ", ".join(
            f"{one.name} {list(one.in_files)} instead of {list(one.in_model)}"
            for one in shapes[:_SHOWN]
        )
        more = f" and {len(shapes) - _SHOWN} more" if len(shapes) > _SHOWN else ""
        yield f"of another shape in the files ({len(shapes)}): {said}{more}"
    if left.whole:
        yield f"whole numbers in the files ({len(left.whole)}): {_listed(left.whole)}"
    if left.unexpected:
        names = left.unexpected
        yield f"in the files, but not in the model ({len(names)}): {_listed(names)}"


def _what_to_do(left: LoadingReport) -> str:
    if any(one.empty for one in left.mismatched):
        return (
            "they were saved while ZeRO-3 held them in parts: gather them when saving "
            "(`stage3_gather_16bit_weights_on_model_save`, or `zero_to_fp32.py` of the checkpoint)"
        )
    if left.whole:
        return (
            "they look like weights in few bits, and config.json has no `quantization_config` that "
            "says how they are read: get the model's own files"
        )
    names = ", ".join(_patterns(left.new)[:_SHOWN])
    to_name = f"`--set 'model.new_parameters=[{names}]'`"
    head = all(not name.startswith(f"{left.base}.") for name in left.new)
    if head and len(left.new) < _ANOTHER_MODEL * len(left.parameters):
        return f"if they shall be new, as a head for another task is, say so: {to_name}"
    if len(left.new) >= _ANOTHER_MODEL * len(left.parameters) or left.unexpected:
        return (
            "the files hold another model's parameters, or other names for them: do config.json "
            "and the weights belong together, and is it the right folder?"
        )
    return (
        "the files are not complete, or config.json is not theirs: get them again; if these "
        f"parameters shall be new, say so: {to_name}"
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(names: Iterable[str]) -> list[str]:
    """The modules of parameters as patterns: `score.*`."""
    kinds = (_NUMBER.sub("*", name) for name in names)
    return list(dict.fromkeys(f"{n.rpartition('.')[0]}.*" if "." in n else n for n in kinds))


def _listed(names: Iterable[str]) -> str:
    """Names for people, those of all layers as one: `layers.*.q_proj.weight ×32`."""
    kinds = Counter(_NUMBER.sub("*", name) for name in names)
    shown = [f"{kind} ×{n}" if n > 1 else kind for kind, n in list(kinds.items())[:_SHOWN]]
    more = len(kinds) - _SHOWN
    return shortened(", ".join(shown) + (f" and {more} more" if more > 0 else ""), 600)


@contextmanager
def left_out(names: Sequence[str]) -> Iterator[None]:
    """Leave these tensors of the files out of a load under ZeRO-3.

    There transformers can't pass over a tensor of another shape (`ignore_mismatched_sizes`).
    """
    usual: Callable[..., Any] = modeling_utils._load_state_dict_into_zero3_model

    def load(model: Any, tensors: Mapping[str, Any], *rest: Any) -> Any:
        return usual(model, {k: v for k, v in tensors.items() if k not in names}, *rest)

    modeling_utils._load_state_dict_into_zero3_model = load
    try:
        yield
    finally:
        modeling_utils._load_state_dict_into_zero3_model = usual
