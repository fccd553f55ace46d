"""The table of keys that DeepSpeed reads, made from its own code, for `dslm config --check`.

Sections with a pydantic model give their fields; the others are read with constants, so the
constants used to look a key up are taken from the syntax tree of the module that reads them. It is
written once per DeepSpeed version by `make docs`, so that linting needs no import of DeepSpeed
(three seconds); `make check` holds the file equal to what this module makes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from types import ModuleType
from typing import Any

import deepspeed
import torch
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
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
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

Node = dict[str, Any]
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
# Sections without a model: the module that reads each, whose other lookups are the section's keys.
_READ_BY = {
    "activation_checkpointing": "deepspeed.runtime.activation_checkpointing.config",
    "flops_profiler": "deepspeed.profiling.config",
    "aio": "deepspeed.runtime.swap_tensor.aio_config",
    "checkpoint": "deepspeed.runtime.model_checkpointing.config",
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
_OPEN_SECTIONS = (
    "autotuning",
    "data_efficiency",
    "datastates_ckpt",
    "expert_parallel",
    "pipeline",
)


def table() -> Node:
    """The whole table, with the version that it is of."""
    # the two that a reader is given by name
    given = {constants.COMMUNICATION_DATA_TYPE, constants.SEQ_PARALLEL_COMMUNICATION_DATA_TYPE}
    keys: dict[str, Node] = {key: {} for key in sorted(_top_level() | given)}
    for name in _OPEN_SECTIONS:
        keys[name] = dict(OPEN)
    for name, model in _MODELS.items():
        keys[name] = _of_model(model)
    for name, module in _READ_BY.items():
        keys[name] = {"keys": {key: {} for key in sorted(_below(importlib.import_module(module)))}}
    keys["data_types"] = {"keys": {key: {} for key in _constants("DATA_TYPES")}}
    keys["torch_autocast"] = {"keys": {key: {} for key in _constants("TORCH_AUTOCAST")}}
    keys["checkpoint"]["keys"].update({key: {} for key in _constants("CHECKPOINT")})
    keys["checkpoint"]["keys"]["writer"] = dict(OPEN)
    keys["timers"] = {"keys": {"throughput": _of_model(DeepSpeedThroughputTimerConfig)}}
    keys["optimizer"] = {
        "keys": {"type": {}, "params": {"by_type": _optimizers()}, "legacy_fusion": {}}
    }
    keys["scheduler"] = {"keys": {"type": {}, "params": {"by_type": _schedulers()}}}
    removed = {
        **runtime._REMOVED_TOP_LEVEL_CONFIG_KEYS,
        **{f"zero_optimization.{k}": v for k, v in runtime._REMOVED_ZERO_CONFIG_KEYS.items()},
    }
    return {
        "deepspeed": deepspeed.__version__,
        "keys": dict(sorted(keys.items())),
        "removed": {key: message.split(". ")[0] + "." for key, message in sorted(removed.items())},
    }


def _of_model(model: type[DeepSpeedConfigModel]) -> Node:
    """Fields of a model, their second spellings, what replaces the deprecated ones, submodels."""
    node: Node = {"keys": {}, "spellings": {}, "deprecated": {}}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("deprecated"):
            node["deprecated"][name] = str(extra.get("new_param") or "")
        elif field.deprecated:
            node["deprecated"][name] = ""
        node["keys"][name] = {}
        for type_ in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if inspect.isclass(type_) and issubclass(type_, DeepSpeedConfigModel):
                node["keys"][name] = _of_model(type_)
            elif type_ is dict or getattr(type_, "__origin__", None) is dict:
                node["keys"][name] = dict(OPEN)
        if field.alias and field.alias != name:
            node["keys"][field.alias] = node["keys"][name]
            node["spellings"][name] = field.alias
    return {key: value for key, value in node.items() if value or key == "keys"}


def _top_level() -> set[str]:
    found: set[str] = set()
    for name in _TOP_READERS:
        found |= _lookups(importlib.import_module(name), _TOP_NAMES, wanted=True)
    return found


def _below(module: ModuleType) -> set[str]:
    """Keys that a module looks up in anything but the whole config."""
    return _lookups(module, _TOP_NAMES, wanted=False)


def _lookups(module: ModuleType, names: frozenset[str], *, wanted: bool) -> set[str]:
    """String keys looked up on variables of these names (or, not wanted, on all others)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        pair = _lookup(node)
        if pair is None:
            continue
        where, key = pair
        name = (
            where.id if isinstance(where, ast.Name) else getattr(where, "attr", None)  # self._x
        )
        value = _value(key, module)
        if name is not None and value is not None and (name in names) == wanted:
            found.add(value)
    return found


def _lookup(node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    """(mapping, key) of `get_scalar_param(m, k, …)`, `m.get(k)`, `m[k]` and `k in m`."""
    match node:
        case ast.Call(func=ast.Name(id="get_scalar_param" | "get_dict_param"), args=[m, k, *_]):
            return m, k
        case ast.Call(func=ast.Attribute(value=m, attr="get"), args=[k, *_]):
            return m, k
        case ast.Subscript(value=m, slice=k):
            return m, k
        case ast.Compare(left=k, ops=[ast.In()], comparators=[m]):
            if isinstance(m, ast.Call) and isinstance(m.func, ast.Attribute):
                m = m.func.value  # param_dict.keys()
            return m, k
    return None


def _value(key: ast.expr, module: ModuleType) -> str | None:
    if isinstance(key, ast.Constant):
        return key.value if isinstance(key.value, str) else None
    if isinstance(key, ast.Name):
        value = getattr(module, key.id, None)
        return value if isinstance(value, str) else None
    return None


def _constants(section: str) -> list[str]:
    """Keys of sections whose constants are all that names them."""
    names = {
        "DATA_TYPES": ("GRAD_ACCUM_DTYPE", "PARAM_DTYPE", "BUFFER_DTYPE", "KEEP_IN_FP32_MODULES"),
        "TORCH_AUTOCAST": (
            "TORCH_AUTOCAST_ENABLED",
            "TORCH_AUTOCAST_DTYPE",
            "TORCH_AUTOCAST_LOWER_PRECISION_SAFE_MODULES",
        ),
        "CHECKPOINT": (
            "CHECKPOINT_TAG_VALIDATION",
            "LOAD_UNIVERSAL_CHECKPOINT",
            "USE_NODE_LOCAL_STORAGE_CHECKPOINT",
            "CHECKPOINT_PARALLEL_WRITE",
        ),
    }[section]
    return [getattr(constants, name, None) or getattr(runtime, name) for name in names]


def _optimizers() -> dict[str, list[str]]:
    """Parameters of each optimizer: DeepSpeed passes them on to these classes by name."""
    adam = {*_signature(FusedAdam), *_signature(DeepSpeedCPUAdam), *_signature(torch.optim.AdamW)}
    adam |= {runtime.TORCH_ADAM_PARAM, runtime.ADAM_W_MODE, "fp32_optimizer_states"}
    muon = {"momentum", "ns_method", "muon_lr", "adam_lr", *adam}
    lion = {*_signature(FusedLion), *_signature(DeepSpeedCPULion)}
    return {
        "adam": sorted(adam),
        "adamw": sorted(adam),
        "adagrad": sorted({*_signature(DeepSpeedCPUAdagrad), *_signature(torch.optim.Adagrad)}),
        "lamb": sorted(_signature(FusedLamb)),
        "lion": sorted(lion),
        "muon": sorted(muon),
    }


def _schedulers() -> dict[str, list[str]]:
    names = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
    return {name: sorted(_signature(getattr(lr_schedules, name))) for name in names}


def _signature(class_: type) -> set[str]:
    skipped = {"self", "params", "model_params", "optimizer"}
    return set(inspect.signature(class_).parameters) - skipped


if __name__ == "__main__":
    sys.stdout.write(json.dumps(table(), indent=1) + "\n")
