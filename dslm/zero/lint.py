"""The linter of DeepSpeed configs: any JSON, also one that dslm never made.

Two kinds of mistakes: keys that DeepSpeed doesn't know (at its top level it ignores them without a
word), and values that contradict each other. The known keys are `keys.json`, made from DeepSpeed's
own config models by `dslm.worker.deepspeed_keys`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dslm.errors import ConfigError, Finding, Where, did_you_mean

Config = Mapping[str, Any]
# What transformers' HfTrainerDeepSpeedConfig and accelerate replace when it is "auto".
_FILLED_BY_TRAINER = frozenset({
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "gradient_clipping", "fp16.enabled", "bf16.enabled",
    "optimizer.params.lr", "optimizer.params.betas", "optimizer.params.eps",
    "optimizer.params.weight_decay",
    "scheduler.params.warmup_min_lr", "scheduler.params.warmup_max_lr",
    "scheduler.params.warmup_num_steps", "scheduler.params.total_num_steps",
    "zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
})  # fmt: skip
_STAGE_3_ONLY = (
    "offload_param", "zero_hpz_partition_size", "zero_quantized_weights",
)  # fmt: skip


def load_config(file: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON.

    Raises:
        ConfigError: it is missing, no JSON, no object, or has a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as failure:
        raise ConfigError(f"can't read it: {failure.strerror}", where=Where(file=file)) from failure
    except UnicodeDecodeError as failure:
        raise ConfigError("it is not UTF-8 text", where=Where(file=file)) from failure

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for number, (key, _) in enumerate(pairs):
            if key in [name for name, _ in pairs[:number]]:
                raise ConfigError(f"the key `{key}` stands there twice", where=Where(file=file))
        return dict(pairs)

    try:
        config = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as failure:
        raise ConfigError(
            f"it is not JSON: {failure.msg}", where=Where(file=file, line=failure.lineno)
        ) from failure
    if not isinstance(config, dict):
        raise ConfigError("it is not a JSON object", where=Where(file=file))
    return config


def lint(config: Config, file: Path | None = None) -> list[Finding]:
    """Everything wrong with a DeepSpeed config, errors first."""
    checks = (_keys, _autos, _batch, _precision, _zero, _optimizer, _scheduler)
    found = [
        Finding(message=message, where=Where(file=file, key=key), hint=hint, severity=severity)
        for check in checks
        for severity, key, message, hint in check(config)
    ]
    return sorted(found, key=lambda finding: finding.severity)


@cache
def known() -> dict[str, Any]:
    """The table of keys."""
    table: dict[str, Any] = json.loads(
        Path(__file__).with_name("keys.json").read_text(encoding="utf-8")
    )
    return table


_Row = tuple[str, str, str, str]  # severity, key, message, hint


def _keys(config: Config) -> Iterator[_Row]:
    removed = known()["removed"]
    for key, message in removed.items():
        section, _, name = key.rpartition(".")
        if name in _section(config, section):
            yield "error", key, message, "remove it"
    yield from _keys_below(config, known(), "", removed)


def _keys_below(
    config: Config, node: Mapping[str, Any], above: str, removed: Mapping[str, str]
) -> Iterator[_Row]:
    names: Mapping[str, Any] = node["keys"]
    for key, value in config.items():
        path = f"{above}{key}"
        if path in removed:
            continue
        if key in node.get("deprecated", {}):
            new = node["deprecated"][key]
            yield "warning", path, "is deprecated", f"use `{new}`" if new else ""
        elif key not in names:
            ignored = " (DeepSpeed ignores it without a word)" if not above else ""
            elsewhere = [p for p in _all_paths() if p.rpartition(".")[2] == key]
            hint = did_you_mean(key, names)
            if elsewhere and not hint:
                hint = f"it belongs to `{elsewhere[0]}`"
            yield "error", path, f"there is no key `{key}`{ignored}", hint
            continue
        below = names.get(key, {})
        if "keys" in below:
            if isinstance(value, Mapping):
                yield from _keys_below(value, below, f"{path}.", removed)
            elif value is not None and not (isinstance(value, bool) and key == "zero_optimization"):
                yield "error", path, "must be an object", ""
    for first, second in node.get("spellings", {}).items():
        if first in config and second in config:
            yield (
                "error",
                f"{above}{first}",
                f"`{first}` and `{second}` are two spellings of one key, and both stand there",
                f"keep `{second}`",
            )


@cache
def _all_paths() -> list[str]:
    def below(node: Mapping[str, Any], above: str) -> Iterator[str]:
        for key, value in node.get("keys", {}).items():
            yield above + key
            yield from below(value, f"{above}{key}.")

    return list(below(known(), ""))


def _autos(config: Config, above: str = "") -> Iterator[_Row]:
    for key, value in config.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _autos(value, f"{path}.")
        elif value == "auto" and path in _FILLED_BY_TRAINER:
            yield "warning", path, 'is "auto": only the Hugging Face Trainer fills that', ""
        elif value == "auto":
            yield "error", path, 'is "auto", and nothing fills it', "give a value, or leave it out"


def _batch(config: Config) -> Iterator[_Row]:
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    values = [config.get(key) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if value not in (None, "auto") and not _is_count(value):
            yield "error", key, f"must be a positive whole number, not {value!r}", ""
            return
    total, micro, accumulation = values
    if total is None and micro is None:
        hint = "give `train_micro_batch_size_per_gpu`"
        yield "error", keys[0], "neither the batch nor the micro batch is given", hint
    if not (isinstance(total, int) and isinstance(micro, int)):
        return
    unit = micro * (accumulation if isinstance(accumulation, int) else 1)
    if total % unit:
        yield (
            "error",
            keys[0],
            f"{total} is no multiple of micro batch × accumulation = {unit}: it must be that "
            "times the number of data-parallel ranks",
            f"{total // unit * unit or unit} or {(total // unit + 1) * unit} would do",
        )


def _precision(config: Config) -> Iterator[_Row]:
    bf16 = _section(config, "bf16") or _section(config, "bfloat16")
    if _is_on(_section(config, "fp16")) and _is_on(bf16):
        yield "error", "fp16.enabled", "fp16 and bf16 are both on", "turn one off"
    if _is_on(_section(config, "fp16")) and _is_on(_section(config, "torch_autocast")):
        yield "warning", "torch_autocast.enabled", "autocast is on beside fp16", "turn one off"
    if bf16.get("bf16_optimizer_states") and not bf16.get("bf16_master_weights_and_grads"):
        hint = "set `bf16.bf16_master_weights_and_grads` too"
        yield "error", "bf16.bf16_optimizer_states", "needs bf16 master weights", hint


def _zero(config: Config) -> Iterator[_Row]:
    zero, at = _section(config, "zero_optimization"), "zero_optimization"
    stage = zero.get("stage", 0)
    if stage == "auto":
        return
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        yield "error", f"{at}.stage", f"must be 0, 1, 2 or 3, not {stage!r}", ""
        return
    offload = _section(zero, "offload_optimizer")
    if _is_offloaded(offload) and stage == 0:
        yield "error", f"{at}.offload_optimizer", "needs stage 1, 2 or 3", "set `stage: 2`"
    for key in _STAGE_3_ONLY:
        value = zero.get(key)
        used = _is_offloaded(value) if isinstance(value, Mapping) else bool(value) and value != 1
        if used and stage != 3:
            yield "error", f"{at}.{key}", f"needs stage 3, not {stage}", "set `stage: 3`"
    for key in ("offload_optimizer", "offload_param"):
        section = _section(zero, key)
        if section.get("device") not in (None, "none", "cpu", "nvme", "auto"):
            device = section["device"]
            yield "error", f"{at}.{key}.device", f"must be none, cpu or nvme, not {device!r}", ""
        if section.get("device") == "nvme" and not section.get("nvme_path"):
            yield "error", f"{at}.{key}.nvme_path", "is needed for `device: nvme`", ""
        if section.get("device") == "nvme" and stage != 3:
            yield "error", f"{at}.{key}.device", f"nvme needs stage 3, not {stage}", ""
    if config.get("gradient_allreduce_op") == "sum" and stage == 3:
        yield "error", "gradient_allreduce_op", "`sum` does not go with stage 3", "use `mean`"
    if _section(config, "tensor_parallel").get("autotp_size", 0) > 1 and stage == 3:
        hint = "use stage 1 or 2"
        yield "error", "tensor_parallel.autotp_size", "does not go with stage 3", hint
    for key, value in zero.items():
        is_size = key.endswith(("bucket_size", "_threshold", "_parameters", "_distance"))
        if is_size and value != "auto" and not _is_count(value, zero=True):
            yield "error", f"{at}.{key}", f"must be a number of elements, not {value!r}", ""


def _optimizer(config: Config) -> Iterator[_Row]:
    section, at = _section(config, "optimizer"), "optimizer"
    if not section:
        return
    types = known()["keys"]["optimizer"]["keys"]["params"]["by_type"]
    name = section.get("type")
    if not isinstance(name, str):
        yield "error", f"{at}.type", "is missing", "such as `AdamW`"
        return
    params = _section(section, "params")
    if "max_grad_norm" in params:
        hint = "use the top-level key `gradient_clipping`"
        yield "error", f"{at}.params.max_grad_norm", "is no optimizer parameter", hint
    names = types.get(name.lower())
    if names is None:
        text = f"`{name}` is none of DeepSpeed's own: torch.optim.{name} will be looked for"
        yield "warning", f"{at}.type", text, did_you_mean(name.lower(), types)
        return
    for key in params:
        if key not in names and key != "max_grad_norm":
            text = f"{name} has no parameter `{key}`"
            yield "error", f"{at}.params.{key}", text, did_you_mean(key, names)


def _scheduler(config: Config) -> Iterator[_Row]:
    section, at = _section(config, "scheduler"), "scheduler"
    if not section:
        return
    types = known()["keys"]["scheduler"]["keys"]["params"]["by_type"]
    name, params = section.get("type"), _section(section, "params")
    if name not in types:
        hint = did_you_mean(str(name), types) or f"known: {', '.join(types)}"
        yield "error", f"{at}.type", f"there is no scheduler `{name}`", hint
        return
    for key in params:
        if key not in types[name]:
            text = f"{name} has no parameter `{key}`"
            yield "error", f"{at}.params.{key}", text, did_you_mean(key, types[name])
    total, warmup = params.get("total_num_steps"), params.get("warmup_num_steps", 1000)
    if "total_num_steps" in types[name] and total is None:
        yield "error", f"{at}.params.total_num_steps", f"{name} needs it", ""
    if isinstance(total, int) and isinstance(warmup, int) and warmup > total:
        text = f"the warm-up of {warmup} steps is longer than the whole run of {total}"
        yield "error", f"{at}.params.warmup_num_steps", text, ""
    rate = _section(_section(config, "optimizer"), "params").get("lr")
    highest = params.get("warmup_max_lr")
    if isinstance(rate, float) and isinstance(highest, float) and rate != highest:
        text = f"{highest} is not the optimizer's lr {rate}: the scheduler's is what counts"
        yield "warning", f"{at}.params.warmup_max_lr", text, "make them equal"


def _section(config: Config, name: str) -> Config:
    value = config.get(name) if name else config
    return value if isinstance(value, Mapping) else {}


def _is_on(section: Config) -> bool:
    return section.get("enabled", False) is True


def _is_offloaded(section: Any) -> bool:
    return isinstance(section, Mapping) and section.get("device", "none") not in ("none", None)


def _is_count(value: Any, *, zero: bool = False) -> bool:
    """DeepSpeed takes 5e8 for a count, too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == int(value) and value >= (0 if zero else 1)
