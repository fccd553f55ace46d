"""Incompatible values in a DeepSpeed config: stages, precisions, batches and other pairs.

A config in, findings out. Most of it is tables, each row with the file of DeepSpeed 0.19.8 that
refuses it (or, at a stage without an effect, ignores it); rows of the last resort are functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dslm.errors import Finding
from dslm.zero.config import (
    Config,
    error,
    is_offloaded,
    is_on,
    number_at,
    section_at,
    stage_of,
    value_at,
    warning,
)
from dslm.zero.values import shown

_ZERO = "zero_optimization"


@dataclass(frozen=True, slots=True)
class _Staged:
    """Something that goes only with some stages."""

    key: str
    stages: tuple[int, ...]
    used: Callable[[Config, str], bool]
    source: str


def _above_one(config: Config, key: str) -> bool:
    return (number_at(config, key) or 0) > 1


def _below_one(config: Config, key: str) -> bool:
    value = number_at(config, key)
    return value is not None and 0 <= value < 1


def _is_off(config: Config, key: str) -> bool:
    value = value_at(config, key)
    return value is False or (value == 0 and isinstance(value, int | float))


def _stands_there(config: Config, key: str) -> bool:
    return isinstance(value_at(config, key), dict)


def _is_nvme(config: Config, key: str) -> bool:
    return bool(value_at(config, key) == "nvme")


_STAGED = (
    _Staged(
        f"{_ZERO}.offload_optimizer", (1, 2, 3), is_offloaded, "runtime/zero/offload_config.py"
    ),
    _Staged(f"{_ZERO}.offload_param", (3,), is_offloaded, "runtime/zero/offload_config.py"),
    _Staged(f"{_ZERO}.zero_hpz_partition_size", (3,), _above_one, "runtime/engine.py"),
    _Staged(f"{_ZERO}.zero_quantized_weights", (3,), is_on, "runtime/engine.py"),
    _Staged(f"{_ZERO}.zero_quantized_nontrainable_weights", (3,), is_on, "runtime/engine.py"),
    _Staged(f"{_ZERO}.zero_quantized_gradients", (3,), is_on, "runtime/engine.py"),
    _Staged(f"{_ZERO}.offload_optimizer.ratio", (3,), _below_one, "runtime/zero/config.py"),
    _Staged(
        f"{_ZERO}.offload_optimizer.super_offload", (3,), is_on, "runtime/zero/offload_config.py"
    ),
    _Staged(f"{_ZERO}.offload_optimizer.device", (3,), _is_nvme, "runtime/zero/stage_1_and_2.py"),
    _Staged(f"{_ZERO}.zenflow", (1, 2, 3), _stands_there, "runtime/zenflow/engine.py"),
    _Staged(f"{_ZERO}.compute_grad_norm", (1, 2), _is_off, "runtime/zero/config.py"),
    _Staged("fp16.fp16_master_weights_and_grads", (1, 2, 3), is_on, "runtime/config.py"),
    _Staged("bf16.bf16_master_weights_and_grads", (1, 2, 3), is_on, "runtime/config.py"),
    _Staged("bf16.bf16_optimizer_states", (1, 2, 3), is_on, "runtime/config.py"),
)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two keys of which only one may be given."""

    first: Callable[[Config], bool]
    second: Callable[[Config], bool]
    key: str
    message: str
    hint: str
    source: str


def _sums(config: Config) -> bool:
    op = config.get("gradient_allreduce_op")
    return isinstance(op, str) and op.lower() == "sum"


def _scatters(config: Config) -> bool:
    return stage_of(config) in (2, 3) and not _is_off(config, f"{_ZERO}.reduce_scatter")


def _name_of_optimizer(config: Config) -> str:
    name = value_at(config, "optimizer.type")
    return name.lower() if isinstance(name, str) else ""


_PAIRS = (
    _Pair(
        lambda c: is_on(c, "fp16.enabled"), lambda c: is_on(c, "bf16.enabled"), "fp16.enabled",
        "fp16 and bf16 are both on", "turn one off", "runtime/config.py",
    ),
    _Pair(
        _sums, lambda c: stage_of(c) == 3, "gradient_allreduce_op",
        "`sum` does not work with stage 3", "use `mean`", "runtime/config.py",
    ),
    _Pair(
        _sums, lambda c: _stands_there(c, f"{_ZERO}.zenflow"), "gradient_allreduce_op",
        "`sum` does not work with ZenFlow", "use `mean`", "runtime/config.py",
    ),
    _Pair(
        _sums, lambda c: is_on(c, "compile.deepcompile"), "gradient_allreduce_op",
        "`sum` does not work with DeepCompile", "use `mean`", "runtime/config.py",
    ),
    _Pair(
        lambda c: is_on(c, "bf16.bf16_optimizer_states"),
        lambda c: not is_on(c, "bf16.bf16_master_weights_and_grads"),
        "bf16.bf16_optimizer_states", "needs bf16 master weights",
        "set `bf16.bf16_master_weights_and_grads` too", "runtime/config.py",
    ),
    _Pair(
        lambda c: value_at(c, f"{_ZERO}.cpu_offload") is not None,
        lambda c: "offload_optimizer" in section_at(c, _ZERO), f"{_ZERO}.cpu_offload",
        "is given beside `offload_optimizer`, which replaces it", "remove `cpu_offload`",
        "runtime/config_utils.py",
    ),
    _Pair(
        lambda c: value_at(c, f"{_ZERO}.cpu_offload_param") is not None,
        lambda c: "offload_param" in section_at(c, _ZERO), f"{_ZERO}.cpu_offload_param",
        "is given beside `offload_param`, which replaces it", "remove `cpu_offload_param`",
        "runtime/config_utils.py",
    ),
    _Pair(
        lambda c: value_at(c, f"{_ZERO}.stage3_gather_fp16_weights_on_model_save") is not None,
        lambda c: any(
            f"{prefix}gather_16bit_weights_on_model_save" in section_at(c, _ZERO)
            for prefix in ("", "stage3_")
        ),
        f"{_ZERO}.stage3_gather_fp16_weights_on_model_save",
        "is given beside `stage3_gather_16bit_weights_on_model_save`, which replaces it",
        "remove it", "runtime/config_utils.py",
    ),
    _Pair(
        lambda c: is_on(c, "prescale_gradients"), _scatters, "prescale_gradients",
        "does not work with stage 2 or 3 that reduces by scattering",
        f"set `{_ZERO}.reduce_scatter: false`", "runtime/zero/stage_1_and_2.py, stage3.py",
    ),
    _Pair(
        lambda c: number_at(c, "gradient_predivide_factor") not in (None, 1), _scatters,
        "gradient_predivide_factor", "does not work with stage 2 or 3 that reduces by scattering",
        f"set `{_ZERO}.reduce_scatter: false`", "runtime/zero/stage_1_and_2.py, stage3.py",
    ),
    _Pair(
        lambda c: _name_of_optimizer(c) == "muon",
        lambda c: stage_of(c) == 3 and _scatters(c), "optimizer.type",
        "Muon does not work with stage 3 that reduces by scattering",
        f"set `{_ZERO}.reduce_scatter: false`", "runtime/zero/stage3.py",
    ),
    _Pair(
        lambda c: _stands_there(c, f"{_ZERO}.zenflow") and stage_of(c) in (1, 2, 3),
        lambda c: not is_offloaded(c, f"{_ZERO}.offload_optimizer"), f"{_ZERO}.zenflow",
        "needs the optimizer on the CPU", f"set `{_ZERO}.offload_optimizer.device: cpu`",
        "runtime/zenflow/zenflow_stage_1_and_2.py",
    ),
)  # fmt: skip


def combinations(config: Config) -> Iterator[Finding]:
    """Everything that doesn't go together."""
    if config.get("bf16") is None and "bfloat16" in config:  # its old name, which is read then
        config = {**config, "bf16": config["bfloat16"]}
    for check in (_batch, _stages, _pairs, _precision, _nvme, _zenflow, _loss_scale, _tensor):
        yield from check(config)


def _batch(config: Config) -> Iterator[Finding]:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    given = [config.get(name) for name in names]
    if given[0] is None and given[1] is None:
        hint = "give `train_micro_batch_size_per_gpu`"
        yield error("batch", names[0], "neither the batch nor the micro batch is given", hint)
        return
    if any(_is_wrong(value) for value in given):
        return
    total, micro, steps = (_count_at(config, name) for name in names)
    if total is None:
        return
    unit = (micro or 1) * (steps or 1)
    if total % unit:
        below = max(1, total // unit) * unit
        what = " × ".join(
            word
            for word, value in (("micro batch", micro), ("accumulation", steps))
            if value is not None
        )
        yield error(
            "batch",
            names[0],
            f"{shown(total)} is not a multiple of {what} = {shown(unit)}: it must be that "
            "times the number of data-parallel ranks",
            f"{shown(below)} or {shown(below + unit)} would work",
        )


def _is_wrong(value: object) -> bool:
    """Return whether a batch size is not a count; another check reports that."""
    if value is None or (isinstance(value, str) and value == "auto"):
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return value <= 0 or (isinstance(value, float) and not value.is_integer())


def _count_at(config: Config, key: str) -> int | None:
    value = number_at(config, key)
    return int(value) if value is not None else None


def _stages(config: Config) -> Iterator[Finding]:
    stage = stage_of(config)
    if stage is None:
        return
    for row in _STAGED:
        if stage in row.stages or not row.used(config, row.key):
            continue
        needed = [str(number) for number in row.stages]
        stages = f"{', '.join(needed[:-1])} or {needed[-1]}" if len(needed) > 1 else needed[0]
        text = f"needs stage {stages}, not {stage}"
        hint = f"set `stage: {2 if 2 in row.stages else 3}`"
        is_beside = row.key.endswith("offload_param") and is_offloaded(
            config, f"{_ZERO}.offload_optimizer"
        )
        if is_beside and stage in (1, 2):
            # DeepSpeed offloads the optimizer and leaves the parameters where they are
            yield warning("stage", row.key, f"has no effect at stage {stage}: {text}", hint)
        else:
            yield error("stage", row.key, text, hint)


def _pairs(config: Config) -> Iterator[Finding]:
    for pair in _PAIRS:
        if pair.first(config) and pair.second(config):
            yield error("combination", pair.key, pair.message, pair.hint)


def _precision(config: Config) -> Iterator[Finding]:
    if is_on(config, "fp16.enabled") and is_on(config, "torch_autocast.enabled"):
        key = "torch_autocast.enabled"
        yield warning("combination", key, "autocast is on beside fp16", "turn one off")


def _nvme(config: Config) -> Iterator[Finding]:
    for name in ("offload_optimizer", "offload_param"):
        section = section_at(config, f"{_ZERO}.{name}")
        if section.get("device") == "nvme" and not section.get("nvme_path"):
            yield error("combination", f"{_ZERO}.{name}.nvme_path", "is needed for `device: nvme`")


def _zenflow(config: Config) -> Iterator[Finding]:
    """Find what `configure_zenflow` refuses (runtime/zenflow/engine.py)."""
    at = f"{_ZERO}.zenflow"
    section = section_at(config, at)
    if not section:
        return
    strategy = section.get("select_strategy", "auto")
    select = number_at(config, f"{at}.select_interval")
    update = number_at(config, f"{at}.update_interval")
    if strategy == "auto" and select is not None:
        hint = "leave it out, or give `select_strategy`"
        text = "does not work with `select_strategy: auto`"
        yield error("combination", f"{at}.select_interval", text, hint)
    elif strategy in ("step", "epoch") and select is None:
        text = f"must be a number with `select_strategy: {strategy}`"
        yield error("combination", f"{at}.select_interval", text)
    elif strategy == "step" and select is not None and update is not None and 0 < select < update:
        text = f"{shown(select)} is below `update_interval`, {shown(update)}"
        yield error("combination", f"{at}.select_interval", text)


def _loss_scale(config: Config) -> Iterator[Finding]:
    """Check the requirements of a dynamic loss scale (runtime/precision_config.py)."""
    if not is_on(config, "fp16.enabled") or (number_at(config, "fp16.loss_scale") or 0) != 0:
        return
    for name in ("loss_scale_window", "min_loss_scale"):
        value = number_at(config, f"fp16.{name}")
        if value is not None and value <= 0:
            text = f"must be above 0, not {shown(value)}: the loss scale is dynamic"
            yield error("range", f"fp16.{name}", text)


def _tensor(config: Config) -> Iterator[Finding]:
    """`_apply_autotp_partitioning` of runtime/engine.py."""
    size = number_at(config, "tensor_parallel.autotp_size")
    for name in ("tensor_parallel", "tp"):
        other = number_at(config, f"tensor_parallel.{name}.tp_size")
        if size and size > 1 and other not in (None, 1, size):
            text = f"{shown(other)} is not `tensor_parallel.autotp_size`, {shown(size)}"
            yield error("combination", f"tensor_parallel.{name}.tp_size", text, "leave it out")
