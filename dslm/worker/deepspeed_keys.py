"""The table of keys that DeepSpeed reads, made from its own code, for `dslm config --check`.

Sections with a pydantic model give their fields with types and ranges; the others are read with
constants, so the constants used to look a key up (and the type of the default beside them) are
taken from the syntax tree of the module that reads them. It is written once per DeepSpeed version
by `make docs`, so that linting needs no import of DeepSpeed (three seconds); `make check` holds the
file equal to what this module makes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import logging
import sys
import typing
from types import ModuleType
from typing import Any

import deepspeed
import torch
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.module_inject.auto_ep_config import available_preset_names
from deepspeed.module_inject.auto_ep_presets.base import AutoEPConfig
from deepspeed.moe.ep_experts import EXPERT_ACTIVATIONS
from deepspeed.monitor import config as monitor
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
from deepspeed.runtime import config as runtime
from deepspeed.runtime import constants, lr_schedules
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import logger
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from dslm.worker.deepspeed_types import (
    CHECKED_IN_CODE,
    Node,
    of_annotation,
    of_default,
    of_parameter,
    of_parameters,
)

OPEN: Node = {"open": True}  # a section whose keys are the user's or that no single module reads

# Modules that look keys up in the whole config, by the names they give to it.
_TOP_READERS = (
    "deepspeed",
    "deepspeed.runtime.config",
    "deepspeed.runtime.activation_checkpointing.config",
    "deepspeed.profiling.config",
    "deepspeed.runtime.swap_tensor.aio_config",
    "deepspeed.datastates.config",
    "deepspeed.utils.config",
)
_TOP_NAMES = frozenset({"param_dict", "_param_dict", "config", "ds_config"})
_CHECKPOINTING = "deepspeed.runtime.model_checkpointing.config"
# Sections without a model: the module that reads each, and the names that it gives to the section.
_READ_BY = {
    "activation_checkpointing": (
        "deepspeed.runtime.activation_checkpointing.config",
        {"act_chkpt_config_dict"},
    ),
    "flops_profiler": ("deepspeed.profiling.config", {"flops_profiler_dict"}),
    "aio": ("deepspeed.runtime.swap_tensor.aio_config", {"aio_dict"}),
    "checkpoint": (_CHECKPOINTING, {"checkpoint_dict"}),
}
_MODELS: dict[str, type[DeepSpeedConfigModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "bfloat16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "comms_logger": CommsLoggerConfig,
    "tensorboard": monitor.TensorBoardConfig,
    "wandb": monitor.WandbConfig,
    "csv_monitor": monitor.CSVConfig,
    "comet": monitor.CometConfig,
    "compile": CompileConfig,
    "tensor_parallel": TPTrainingConfig,
    "hybrid_engine": runtime.HybridEngineConfig,
    "weight_quantization": WeightQuantConfig,
}
_OPEN_SECTIONS = ("autotuning", "data_efficiency", "pipeline")
# torch's, that no JSON can make (their parameters are functions or other schedulers) or drive
_UNUSABLE_SCHEDULERS = frozenset({
    "LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler",
    "ReduceLROnPlateau",
})  # fmt: skip


def table() -> Node:
    """Return the whole table, with the version that it is of."""
    logger.setLevel(logging.CRITICAL)
    keys = {key: of_default(default) for key, default in sorted(_top_level().items())}
    # the two that a reader is given by name
    for key in (constants.COMMUNICATION_DATA_TYPE, constants.SEQ_PARALLEL_COMMUNICATION_DATA_TYPE):
        keys[key] = {}
    for name in _OPEN_SECTIONS:
        keys[name] = dict(OPEN)
    for name, model in _MODELS.items():
        keys[name] = _of_model(model)
    for name, (module, names) in _READ_BY.items():
        found = _lookups(importlib.import_module(module), frozenset(names))
        keys[name] = {"keys": {key: of_default(found[key]) for key in sorted(found)}}
    keys |= _other_sections(keys["checkpoint"])
    whole: Node = {"deepspeed": deepspeed.__version__, "keys": dict(sorted(keys.items()))}
    for path, (node, source) in CHECKED_IN_CODE.items():
        _put(whole, path, {**node, "source": source})
    for key, node in keys.items():
        if _takes_null(key):
            node["null"] = True
    removed = {
        **runtime._REMOVED_TOP_LEVEL_CONFIG_KEYS,
        **{f"zero_optimization.{k}": v for k, v in runtime._REMOVED_ZERO_CONFIG_KEYS.items()},
    }
    whole["removed"] = {key: m.split(". ")[0].rstrip(".") for key, m in sorted(removed.items())}
    return whole


def _other_sections(checkpoint: Node) -> dict[str, Node]:
    """The sections that are made of parts."""
    written = importlib.import_module(_CHECKPOINTING)
    writer = _lookups(written, frozenset({"writer_dict"}))
    checkpoint["keys"] |= {
        "writer": {"keys": {key: of_default(writer[key]) for key in sorted(writer)}, "null": True},
        constants.LOAD_UNIVERSAL_CHECKPOINT: {"type": "boolean"},
        constants.USE_NODE_LOCAL_STORAGE_CHECKPOINT: {"type": "boolean"},
        constants.CHECKPOINT_PARALLEL_WRITE: {
            "keys": {constants.CHECKPOINT_PARALLEL_WRITE_PIPELINE_STAGE: {"type": "boolean"}}
        },
    }
    dtype = {"type": "text", "words": _dtypes(), "null": True}
    types = dict.fromkeys(
        (constants.GRAD_ACCUM_DTYPE, constants.PARAM_DTYPE, constants.BUFFER_DTYPE), dtype
    )
    return {
        "data_types": {"keys": {**types, constants.KEEP_IN_FP32_MODULES: {}}},
        "torch_autocast": {
            "keys": {
                constants.TORCH_AUTOCAST_ENABLED: {"type": "boolean"},
                constants.TORCH_AUTOCAST_DTYPE: {**dtype, "null": False},
                constants.TORCH_AUTOCAST_LOWER_PRECISION_SAFE_MODULES: {},
            }
        },
        "datastates_ckpt": {**OPEN, "any": True},
        "expert_parallel": _of_expert_parallel(),
        "timers": {"keys": {"throughput": _of_model(DeepSpeedThroughputTimerConfig)}},
        "optimizer": {
            "keys": {
                "type": {"type": "text"},
                "params": {"by_type": _optimizers(), "null": True},
                "legacy_fusion": {"type": "boolean"},
            }
        },
        "scheduler": {"keys": {"type": {"type": "text"}, "params": {"by_type": _schedulers()}}},
        "zero_force_ds_cpu_optimizer": {"type": "boolean"},
    }


def _dtypes() -> list[str]:
    """Every way to write a data type that `DtypeEnum` knows."""
    return [word for dtype in runtime.DtypeEnum for word in dtype._all_values[1:]]


def _put(whole: Node, path: str, node: Node) -> None:
    """Say what is known of a key; what one optimizer or scheduler takes is said where it is."""
    *sections, key = path.split(".")
    keys = whole["keys"]
    for section in sections:
        if "by_type" in keys[section]:
            return
        keys = keys[section]["keys"]
    if key not in keys:
        raise KeyError(f"DeepSpeed {deepspeed.__version__} has no key {path}")
    keys[key] = node
    alias = {"bf16": "bfloat16"}.get(path)
    if alias:
        keys[alias] = node


def _takes_null(key: str) -> bool:
    """Ask DeepSpeed whether it parses a config in which this top-level key is null."""
    given = CHECKED_IN_CODE.get(key)
    if given is not None:
        return bool(given[0].get("null"))
    try:
        runtime.DeepSpeedConfig({"train_batch_size": 1, key: None})
    except (AttributeError, TypeError, ValueError, AssertionError, runtime.DeepSpeedConfigError):
        return False
    return True


def _of_model(model: type[DeepSpeedConfigModel]) -> Node:
    """Fields of a model, their second spellings, what replaces the deprecated ones, submodels."""
    # DeepSpeedConfigModel drops every "auto" (runtime/config_utils.py)
    node: Node = {"keys": {}, "spellings": {}, "deprecated": {}, "drops_auto": True}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("deprecated"):
            new = str(extra.get("new_param") or "")
            node["deprecated"][name] = new
        elif field.deprecated:
            node["deprecated"][name] = ""
        node["keys"][name] = of_annotation(field.annotation, field.metadata)
        for type_ in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if inspect.isclass(type_) and issubclass(type_, DeepSpeedConfigModel):
                null = node["keys"][name].get("null") or _model_takes_null(type_)
                node["keys"][name] = _of_model(type_) | ({"null": True} if null else {})
            elif type_ is dict or getattr(type_, "__origin__", None) is dict:
                null = node["keys"][name].get("null")
                node["keys"][name] = OPEN | ({"null": True} if null else {})
        if field.alias and field.alias != name:
            node["keys"][field.alias] = node["keys"][name]
            node["spellings"][name] = field.alias
    return {key: value for key, value in node.items() if value or key == "keys"}


def _model_takes_null(model: type[DeepSpeedConfigModel]) -> bool:
    """Return whether a model turns null into its defaults, as that of leaf modules does."""
    try:
        model.model_validate(None)
    except (TypeError, ValueError):
        return False
    return True


def _of_expert_parallel() -> Node:
    """AutoEP's section: a dataclass, filled by name."""
    hints = typing.get_type_hints(AutoEPConfig)
    reader = importlib.import_module("deepspeed.module_inject.auto_ep_config")
    keys = {
        name: of_annotation(hints[name])
        for name in sorted(_lookups(reader, frozenset({"param_dict"})))
    }
    keys["preset_model"] = {"type": "text", "words": list(available_preset_names()), "null": True}
    keys["expert_activation"] = {"type": "text", "words": list(EXPERT_ACTIVATIONS), "null": True}
    return {"keys": keys}


def _top_level() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _TOP_READERS:
        for key, default in _lookups(importlib.import_module(name), _TOP_NAMES).items():
            found[key] = found.get(key) if found.get(key) is not None else default
    return found


def _lookups(module: ModuleType, names: frozenset[str]) -> dict[str, Any]:
    """String keys looked up on variables of these names, each with its default if there is one."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        triple = _lookup(node)
        if triple is None:
            continue
        where, key, default = triple
        name = (
            where.id if isinstance(where, ast.Name) else getattr(where, "attr", None)  # self._x
        )
        value = _value(key, module)
        if name in names and isinstance(value, str):
            known = _value(default, module) if default is not None else None
            found[value] = found.get(value) if found.get(value) is not None else known
    return found


def _lookup(node: ast.AST) -> tuple[ast.expr, ast.expr, ast.expr | None] | None:
    """(mapping, key, default) of `get_scalar_param(m, k, d)`, `m.get(k)`, `m[k]` and `k in m`."""
    match node:
        case ast.Call(func=ast.Name(id="get_scalar_param" | "get_dict_param"), args=[m, k, *rest]):
            return m, k, rest[0] if rest else None
        case ast.Call(func=ast.Attribute(value=m, attr="get"), args=[k, *rest]):
            return m, k, rest[0] if rest else None
        case ast.Subscript(value=m, slice=k):
            return m, k, None
        case ast.Compare(left=k, ops=[ast.In()], comparators=[m]):
            if isinstance(m, ast.Call) and isinstance(m.func, ast.Attribute):
                m = m.func.value  # param_dict.keys()
            return m, k, None
    return None


def _value(key: ast.expr, module: ModuleType) -> Any:
    """What a constant, or the name of one, stands for; else None."""
    if isinstance(key, ast.Constant):
        return key.value
    if isinstance(key, ast.Name):
        return getattr(module, key.id, None)
    return None


def _optimizers() -> dict[str, Node]:
    """Parameters of each optimizer: DeepSpeed passes them on to these classes by name."""

    def of(*classes: type, extra: tuple[str, ...] = ()) -> Node:
        keys = {name: of_parameter(name, None, "", "optimizer") for name in extra}
        for class_ in classes:
            keys |= of_parameters(class_, "optimizer")["keys"]
        return {"keys": dict(sorted(keys.items())), "required": []}

    adam = of(
        FusedAdam,
        DeepSpeedCPUAdam,
        torch.optim.AdamW,
        extra=(runtime.TORCH_ADAM_PARAM, runtime.ADAM_W_MODE, "fp32_optimizer_states"),
    )
    muon = ("momentum", "ns_method", "muon_lr", "adam_lr")
    found: dict[str, Node] = {
        "adam": adam,
        "adamw": adam,
        "adagrad": of(DeepSpeedCPUAdagrad, torch.optim.Adagrad),
        "lamb": of(FusedLamb),
        "lion": of(FusedLion, DeepSpeedCPULion),
        "muon": {
            "keys": dict(
                sorted({
                    **adam["keys"],
                    **{name: of_parameter(name, None, "", "optimizer") for name in muon},
                }.items())
            ),
            "required": [],
        },
    }  # fmt: skip
    # of the package `mup`, which need not be here
    for name in (runtime.MUADAM_OPTIMIZER, runtime.MUADAMW_OPTIMIZER, runtime.MUSGD_OPTIMIZER):
        found[name] = dict(OPEN)
    for name, class_ in vars(torch.optim).items():
        if inspect.isclass(class_) and name != "Optimizer" and name.lower() not in found:
            found[name] = {**of_parameters(class_, "optimizer"), "torch": True}
            if class_ in ZERO_SUPPORTED_OPTIMIZERS:
                found[name]["zero"] = True
    return found


def _schedulers() -> dict[str, Node]:
    """DeepSpeed's own schedulers and those of torch, with their parameters."""
    found = {
        name: of_parameters(getattr(lr_schedules, name), "scheduler")
        for name in lr_schedules.VALID_LR_SCHEDULES
    }
    torchs = torch.optim.lr_scheduler
    for name, class_ in sorted(vars(torchs).items()):
        if (
            inspect.isclass(class_)
            and issubclass(class_, torchs.LRScheduler)
            and not name.startswith("_")
            and name not in _UNUSABLE_SCHEDULERS
        ):
            found[name] = {**of_parameters(class_, "scheduler"), "torch": True}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(table(), indent=1) + "\n")
