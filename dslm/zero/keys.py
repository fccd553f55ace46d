"""DeepSpeed's knowledge of its config, as values: every key with its type, range and words.

`keys.json`, made from DeepSpeed's own code by `dslm.worker.deepspeed_keys`, comes in. Also the
names that other tools have for these keys. Knows nothing of a config that is being linted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dslm.errors import did_you_mean

_NEAR_ENOUGH = 64  # letters; a longer name is no typo of a key

# What the Trainer of transformers, accelerate and people call a key, and where it stands.
SYNONYMS: Mapping[str, str] = {
    "learning_rate": "optimizer.params.lr",
    "lr": "optimizer.params.lr",
    "betas": "optimizer.params.betas",
    "adam_beta1": "optimizer.params.betas",
    "adam_beta2": "optimizer.params.betas",
    "eps": "optimizer.params.eps",
    "adam_epsilon": "optimizer.params.eps",
    "weight_decay": "optimizer.params.weight_decay",
    "torch_adam": "optimizer.params.torch_adam",
    "max_grad_norm": "gradient_clipping",
    "grad_clip": "gradient_clipping",
    "clip_grad": "gradient_clipping",
    "gradient_clip": "gradient_clipping",
    "clip_grad_norm": "gradient_clipping",
    "batch_size": "train_batch_size",
    "global_batch_size": "train_batch_size",
    "micro_batch_size": "train_micro_batch_size_per_gpu",
    "train_micro_batch_size": "train_micro_batch_size_per_gpu",
    "per_device_train_batch_size": "train_micro_batch_size_per_gpu",
    "grad_accum_steps": "gradient_accumulation_steps",
    "warmup_steps": "scheduler.params.warmup_num_steps",
    "warmup_num_steps": "scheduler.params.warmup_num_steps",
    "warmup_min_lr": "scheduler.params.warmup_min_lr",
    "warmup_max_lr": "scheduler.params.warmup_max_lr",
    "total_num_steps": "scheduler.params.total_num_steps",
    "max_steps": "scheduler.params.total_num_steps",
    "lr_scheduler": "scheduler",
    "zero": "zero_optimization",
    "zero_stage": "zero_optimization.stage",
    "stage": "zero_optimization.stage",
    "offload": "zero_optimization.offload_optimizer",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "tensor_parallel_size": "tensor_parallel.autotp_size",
    "expert_parallel_size": "expert_parallel.autoep_size",
    "autotp_size": "tensor_parallel.autotp_size",
    "autoep_size": "expert_parallel.autoep_size",
    "loss_scale": "fp16.loss_scale",
    "dtype": "torch_autocast.dtype",
    "mixed_precision": "bf16.enabled",
    "float16": "fp16",
    "half": "fp16",
    "activation_checkpoint": "activation_checkpointing",
    "logging_steps": "steps_per_print",
}
# accelerate reads these of the same file, DeepSpeed doesn't
READ_BY_OTHERS = frozenset({"msamp"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key: a section with keys of its own, or a value with a type and bounds."""

    types: tuple[str, ...] = ("any",)
    null: bool = False
    words: tuple[str | int, ...] = ()
    fold: bool = False  # words in any case
    others: tuple[str, ...] = ()  # words that stand for a value of another type, such as "auto"
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    exact: bool = False  # 1e3 is no whole number here
    infinite: bool = False  # infinity is a value here
    length: int | None = None
    items: Key | None = None
    keys: Mapping[str, Key] | None = None
    open: bool = False  # a section whose keys nobody checks
    drops_auto: bool = False  # a section that takes its default for "auto"
    spellings: Mapping[str, str] = field(default_factory=dict)
    deprecated: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_section(self) -> bool:
        """Whether a mapping is expected."""
        return self.keys is not None or self.open


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """An optimizer or a scheduler: what may be given, what must be, and whose it is."""

    params: Mapping[str, Key]
    required: tuple[str, ...]
    open: bool  # of a package that need not be here
    is_torch: bool
    with_zero: bool  # ZeRO takes it without `zero_allow_untested_optimizer`


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All that is known of one version of DeepSpeed."""

    version: str
    top: Key
    removed: Mapping[str, str]
    optimizers: Mapping[str, Maker]
    schedulers: Mapping[str, Maker]

    def optimizer(self, name: str) -> Maker | None:
        """An optimizer by its name: DeepSpeed's own in any case, torch's as torch writes it."""
        own = self.optimizers.get(name.lower())
        return own if own is not None and not own.is_torch else self.optimizers.get(name)


@cache
def table() -> Table:
    """Return the table that ships with dslm."""
    raw = known()
    makers = {
        name: {
            each: Maker(
                params={p: _key(k) for p, k in node.get("keys", {}).items()},
                required=tuple(node.get("required", ())),
                open=bool(node.get("open")),
                is_torch=bool(node.get("torch")),
                with_zero=not node.get("torch") or bool(node.get("zero")),
            )
            for each, node in raw["keys"][name]["keys"]["params"]["by_type"].items()
        }
        for name in ("optimizer", "scheduler")
    }
    return Table(
        version=raw["deepspeed"],
        top=_key(raw),
        removed=raw["removed"],
        optimizers=makers["optimizer"],
        schedulers=makers["scheduler"],
    )


@cache
def known() -> dict[str, Any]:
    """Return the table as it is written."""
    raw: dict[str, Any] = json.loads(
        Path(__file__).with_name("keys.json").read_text(encoding="utf-8")
    )
    return raw


def _key(node: Mapping[str, Any]) -> Key:
    types = node.get("type", "any")
    is_maker = "by_type" in node
    return Key(
        types=(types,) if isinstance(types, str) else tuple(types),
        null=bool(node.get("null")),
        words=tuple(node.get("words", ())),
        fold=bool(node.get("fold")),
        others=tuple(node.get("or", ())),
        ge=node.get("ge"),
        gt=node.get("gt"),
        le=node.get("le"),
        lt=node.get("lt"),
        exact=bool(node.get("exact")),
        infinite=bool(node.get("infinite")),
        length=node.get("length"),
        items=_key(node["items"]) if "items" in node else None,
        keys={k: _key(v) for k, v in node["keys"].items()} if "keys" in node else None,
        open=(bool(node.get("open")) and not node.get("any")) or is_maker,
        drops_auto=bool(node.get("drops_auto")),
        spellings=node.get("spellings", {}),
        deprecated=node.get("deprecated", {}),
    )


def home_of(name: str) -> str:
    """Find the section that a misplaced key belongs to: a dotted path, or ""."""
    if name in SYNONYMS:
        return SYNONYMS[name]
    paths = _paths().get(name, ())
    return paths[0] if 0 < len(paths) <= 3 else ""


def nearest(name: str, known_names: Mapping[str, object]) -> str:
    """Return the hint for a misspelt key, or ""."""
    return did_you_mean(name, known_names) if len(name) <= _NEAR_ENOUGH else ""


@cache
def _paths() -> Mapping[str, tuple[str, ...]]:
    """Every dotted path by its last name."""
    found: dict[str, list[str]] = {}

    def below(key: Key, above: str) -> Iterator[str]:
        for name, child in (key.keys or {}).items():
            yield above + name
            yield from below(child, f"{above}{name}.")

    for path in below(table().top, ""):
        if not path.startswith("bfloat16."):
            found.setdefault(path.rpartition(".")[2], []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}
