"""The linter of DeepSpeed configs: any JSON, also one that dslm never made.

Four kinds of mistakes: keys that DeepSpeed doesn't know (at its top level it ignores them without a
word), values that a key can't hold, "auto" that nothing fills, and values that don't go together.
What is known of keys and values is `keys.json`, made from DeepSpeed's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import count
from pathlib import Path

from dslm.errors import Finding
from dslm.zero.combinations import combinations
from dslm.zero.config import Config, error, section_at, warning
from dslm.zero.keys import READ_BY_OTHERS, Key, home_of, known, nearest, table
from dslm.zero.making import optimizer, scheduler
from dslm.zero.read import read_config
from dslm.zero.values import problem, shown

__all__ = ["Config", "known", "lint", "load_config"]

# What transformers' HfTrainerDeepSpeedConfig and accelerate's DeepSpeedPlugin fill in for "auto".
_FILLED_BY_TRAINER = frozenset({
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "gradient_clipping", "fp16.enabled", "bf16.enabled",
    "optimizer.params.lr", "optimizer.params.betas", "optimizer.params.eps",
    "optimizer.params.weight_decay",
    "scheduler.params.warmup_min_lr", "scheduler.params.warmup_max_lr",
    "scheduler.params.warmup_num_steps", "scheduler.params.total_num_steps",
    "zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage",
    "zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device",
    "zero_optimization.offload_optimizer.nvme_path", "zero_optimization.offload_param.nvme_path",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
})  # fmt: skip
_COMMENTS = ("_", "#", "//", "$")  # how people begin a key that is a remark
_SURE = 0.8  # likeness of an unknown key to a known one that makes it a typo
_MOST_HINTS = 50  # unknown keys that the nearest known one is looked for
_MOST_KEY = 60  # letters of a key in a message


def load_config(file: Path) -> dict[str, object]:
    """Read a DeepSpeed JSON.

    Raises:
        ConfigError: see `dslm.zero.read.read_config`.
    """
    return read_config(file).values


def lint(
    config: Config, file: Path | None = None, lines: Mapping[str, int] | None = None
) -> list[Finding]:
    """Everything wrong with a DeepSpeed config, errors first, each in the order of the file.

    Args:
        config: the values.
        file: where they were read.
        lines: the line of each dotted key.
    """
    found: list[Finding] = []
    for check in (_keys, _autos, combinations, optimizer, scheduler):
        found += check(config)
    lines = lines or {}
    placed = [
        replace(
            finding,
            where=replace(finding.where, file=file, line=_line(finding.where.key or "", lines)),
        )
        for finding in dict.fromkeys(found)
    ]
    return sorted(placed, key=lambda f: (f.severity, f.where.line or 0))


def _line(key: str, lines: Mapping[str, int]) -> int | None:
    """The line of a key, or of the nearest section above one that is missing."""
    while key:
        if key in lines:
            return lines[key]
        key = key.rpartition(".")[0]
    return None


def _keys(config: Config) -> Iterator[Finding]:
    removed = table().removed
    for key, message in removed.items():
        section, _, name = key.rpartition(".")
        if name in (section_at(config, section) if section else config):
            yield error("removed", key, message, "remove it")
    if config and not any(name in (table().top.keys or {}) for name in config):
        names = ", ".join(f"`{name[:_MOST_KEY]}`" for name in list(config)[:3])
        hint = "it looks like another program's file"
        yield error("unknown key", "", f"DeepSpeed knows none of its keys ({names} …)", hint)
        return
    yield from _keys_below(config, table().top, "", count(1))


def _keys_below(config: Config, node: Key, above: str, unknown: Iterator[int]) -> Iterator[Finding]:
    names = node.keys or {}
    for key, value in config.items():
        path = f"{above}{key}"
        if path in table().removed:
            continue
        if key in node.deprecated:
            new = node.deprecated[key]
            hint = f"use `{new}`" if new else ""
            yield warning("deprecated", path, "is deprecated", hint)
        if key not in names:
            finding = _unknown(key, above, names, unknown)
            if finding is not None:
                yield finding
        else:
            yield from _value(names[key], value, path, unknown)
    for first, second in node.spellings.items():
        if first in config and second in config:
            yield error(
                "spelling",
                f"{above}{first}",
                f"`{first}` and `{second}` are two spellings of one key, and both are given",
                f"keep `{second}`",
            )


def _unknown(
    key: str, above: str, names: Mapping[str, Key], unknown: Iterator[int]
) -> Finding | None:
    """Report a key that DeepSpeed doesn't know here; None if it is a comment."""
    shown_key = key if len(key) <= _MOST_KEY else f"{key[:_MOST_KEY]}…"
    path = f"{above}{shown_key}"
    is_remark = key.startswith(_COMMENTS) or key.lower() in ("comment", "comments")
    if not above and (is_remark or key in READ_BY_OTHERS):
        return None
    if is_remark:
        text = f"a comment `{shown_key}` is refused here: DeepSpeed takes it for a key"
        return error("unknown key", path, text, "move it to the top level")
    with_hints = next(unknown) <= _MOST_HINTS
    home = home_of(key) if with_hints else ""
    near = nearest(key, names) if with_hints else ""
    hint = f"it belongs to `{home}`" if home else near
    text = f"there is no key `{shown_key}`"
    if above:
        return error("unknown key", path, text, hint)
    text += " (DeepSpeed silently ignores it)"
    if home or not with_hints or (near and _is_typo(key, names)):
        return error("unknown key", path, text, hint)
    return warning("unknown key", path, text, hint)


def _is_typo(key: str, names: Mapping[str, Key]) -> bool:
    folded = key.lower()
    return any(SequenceMatcher(None, folded, name).ratio() >= _SURE for name in names)


def _value(key: Key, value: object, path: str, unknown: Iterator[int]) -> Iterator[Finding]:
    if value == "auto" and isinstance(value, str):
        return
    if key.is_section:
        if isinstance(value, Mapping):
            if not key.open:
                yield from _keys_below(value, key, f"{path}.", unknown)
            else:
                yield from _not_finite(value, path)
        elif value is None:
            if not key.null:
                text = "is null: DeepSpeed needs an object, or nothing"
                yield error("value", path, text, "remove it")
        elif not (isinstance(value, bool) and path == "zero_optimization"):
            yield error("value", path, f"must be an object, not {shown(value)}")
        return
    if _is_not_finite(value) and not (key.infinite and value == math.inf):
        yield error("value", path, f"{shown(value)} is not a finite number")
        return
    wrong = problem(key, value)
    if wrong:
        yield error("value", path, wrong)


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _not_finite(value: object, path: str) -> Iterator[Finding]:
    """Numbers that are none, in a section that nothing else is known of."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _not_finite(below, f"{path}.{key}")
    elif isinstance(value, list):
        for below in value:
            yield from _not_finite(below, path)
    elif _is_not_finite(value):
        yield error("value", path, f"{shown(value)} is not a finite number")


def _autos(config: Config) -> Iterator[Finding]:
    """ "auto": what the Trainer fills, what DeepSpeed drops, and what nobody fills."""
    for path, section, key in _places_of_auto(config, table().top, ""):
        if path in _FILLED_BY_TRAINER:
            text = 'is "auto": only the Hugging Face Trainer or accelerate fills that'
            yield warning("auto", path, text)
        elif key is not None and ("auto" in key.words or "auto" in key.others):
            continue
        elif section is not None and section.drops_auto:
            text = 'is "auto": DeepSpeed takes its default for it, and accelerate refuses it'
            yield warning("auto", path, text, "leave it out")
        else:
            hint = "give a value, or leave it out"
            yield error("auto", path, 'is "auto", and nothing fills it', hint)


def _places_of_auto(
    config: Config, node: Key | None, above: str
) -> Iterator[tuple[str, Key | None, Key | None]]:
    """Each "auto": its path, the section that it is in, and its key, as far as they are known."""
    for name, value in config.items():
        path = f"{above}{name}"
        if name.startswith(_COMMENTS):
            continue
        key = (node.keys or {}).get(name) if node is not None else None
        if isinstance(value, Mapping):
            if key is None or not key.open or path in ("optimizer.params", "scheduler.params"):
                yield from _places_of_auto(value, key, f"{path}.")
        elif isinstance(value, str) and value == "auto":
            yield path, node, key
