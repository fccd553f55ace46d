"""What a value of a DeepSpeed config may be: type, range and words, read from DeepSpeed's own code.

A pydantic field, a dataclass field or a parameter of a class comes in; a small JSON node goes out,
which `dslm.zero.keys` reads. Where DeepSpeed checks a value in code and not in a model, the node
stands in `CHECKED_IN_CODE`, with the file that does it.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import annotated_types

Node = dict[str, Any]

_NAMES: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    Path: "text",
    list: "list",
    tuple: "list",
    dict: "mapping",
}
_DTYPES = {"words": ["fp32", "fp16", "bf16"], "type": "text", "fold": True, "null": True}
_POSITIVE = {"type": "integer", "gt": 0}
_COUNT = {**_POSITIVE, "null": True}
_RATE = {"type": ["number", "list"], "items": {"type": "number"}}

# Path of a key: (what its value may be, the file of DeepSpeed 0.19.8 that says so).
CHECKED_IN_CODE: dict[str, tuple[Node, str]] = {
    "train_batch_size": (_COUNT, "runtime/config.py"),
    "train_micro_batch_size_per_gpu": (_COUNT, "runtime/config.py"),
    "gradient_accumulation_steps": (_COUNT, "runtime/config.py"),
    "sequence_parallel_size": (_POSITIVE, "runtime/config.py"),
    "vocabulary_size": ({"type": "integer", "null": True}, "runtime/config.py"),
    "gradient_clipping": ({"type": "number", "ge": 0}, "runtime/engine.py"),
    "gradient_predivide_factor": ({"type": "number", "gt": 0}, "runtime/engine.py"),
    # accelerate writes an infinity here, which silences DeepSpeed
    "steps_per_print": (
        {"type": "number", "gt": 0, "null": True, "infinite": True},
        "runtime/engine.py",
    ),
    "communication_data_type": (_DTYPES, "runtime/config.py"),
    "seq_parallel_communication_data_type": (_DTYPES, "runtime/config.py"),
    "gradient_allreduce_op": (
        {"type": "text", "words": ["mean", "sum"], "fold": True},
        "runtime/config.py",
    ),
    "log_level": (
        {
            "type": "text",
            "words": ["debug", "info", "warning", "error", "critical"],
            "fold": True,
            "null": True,
        },
        "utils/logging.py",
    ),
    "checkpoint.tag_validation": (
        {"type": "text", "words": ["warn", "ignore", "fail"], "fold": True},
        "runtime/config.py",
    ),
    "checkpoint.writer.type": (
        {"type": "text", "words": ["mock", "python", "fast"], "fold": True, "null": True},
        "runtime/model_checkpointing/config.py",
    ),
    "checkpoint.writer.data_parallel": (
        {
            "type": "text",
            "words": ["replica", "socket", "machine"],
            "fold": True,
            "null": True,
        },
        "runtime/model_checkpointing/config.py",
    ),
    "data_types.keep_in_fp32_modules": (
        {"type": "list", "items": {"type": "text"}, "or": ["auto"]},
        "runtime/config.py",
    ),
    "torch_autocast.lower_precision_safe_modules": (
        {"type": "list", "items": {"type": "text"}},
        "runtime/config.py",
    ),
    "activation_checkpointing.number_checkpoints": (
        _COUNT,
        "runtime/activation_checkpointing/checkpointing.py",
    ),
    "flops_profiler.output_file": ({"type": "text", "null": True}, "profiling/config.py"),
    "fp16.loss_scale": ({"type": "number", "ge": 0}, "runtime/precision_config.py"),
    "zero_optimization.zenflow.select_strategy": (
        {"type": "text", "words": ["auto", "step", "epoch"]},
        "runtime/zenflow/zenflow_config.py",
    ),
    "zero_optimization.zenflow.select_interval": (
        {"type": "integer", "or": ["auto"]},
        "runtime/zenflow/zenflow_config.py",
    ),
    "zero_optimization.zenflow.update_interval": (
        {"type": "integer", "or": ["auto"], "ge": 1},
        "runtime/zenflow/zenflow_config.py",
    ),
    "zero_optimization.leaf_module.classes": (
        {"type": ["list", "text"], "items": {"type": "text"}},
        "runtime/zero/leaf_module_config.py",
    ),
    "zero_optimization.leaf_module.names": (
        {"type": ["list", "text"], "items": {"type": "text"}},
        "runtime/zero/leaf_module_config.py",
    ),
    "zero_optimization.leaf_module.name_suffixes": (
        {"type": ["list", "text"], "items": {"type": "text"}},
        "runtime/zero/leaf_module_config.py",
    ),
    "expert_parallel.autoep_size": (_POSITIVE, "module_inject/auto_ep_folding.py"),
    "expert_parallel.expert_tensor_parallel_size": (
        _POSITIVE,
        "module_inject/auto_ep_folding.py",
    ),
    "expert_parallel.comm_num_sm": (_POSITIVE, "module_inject/auto_ep_config.py"),
    "expert_parallel.comm_qp_margin": (
        {"type": "integer", "ge": 0},
        "module_inject/auto_ep_config.py",
    ),
    "expert_parallel.comm_max_tokens_per_rank": (
        {"type": "integer", "ge": 0},
        "module_inject/auto_ep_config.py",
    ),
    "expert_parallel.num_expert_groups": (_COUNT, "module_inject/auto_ep_config.py"),
    "expert_parallel.num_limited_groups": (_COUNT, "module_inject/auto_ep_config.py"),
    "expert_parallel.top_k": (
        {"type": "integer", "or": ["auto"]},
        "module_inject/auto_ep_presets/base.py",
    ),
    "expert_parallel.routed_scaling_factor": (
        {"type": "number", "or": ["auto"]},
        "module_inject/auto_ep_config.py",
    ),
    "expert_parallel.load_balance_coeff": (
        {"type": "nothing", "null": True},
        "module_inject/auto_ep_presets/base.py",
    ),
    "expert_parallel.expert_w3": (
        {"type": "text", "null": True},
        "module_inject/auto_ep_config.py",
    ),
    # optimizers, by the name of the parameter; the ranges are those of torch/optim
    "optimizer.params.lr": ({"type": "number", "ge": 0}, "ops/adam/fused_adam.py"),
    "optimizer.params.muon_lr": ({"type": "number", "ge": 0}, "runtime/engine.py"),
    "optimizer.params.adam_lr": ({"type": "number", "ge": 0}, "runtime/engine.py"),
    "optimizer.params.momentum": (
        {"type": "number", "ge": 0},
        "runtime/zero/muon/muon_optimizer.py",
    ),
    "optimizer.params.eps": ({"type": "number", "ge": 0}, "ops/adam/fused_adam.py"),
    "optimizer.params.weight_decay": ({"type": "number", "ge": 0}, "ops/adam/fused_adam.py"),
    "optimizer.params.betas": (
        {"type": "list", "items": {"type": "number", "ge": 0, "lt": 1}, "length": 2},
        "ops/adam/fused_adam.py",
    ),
    "optimizer.params.torch_adam": ({"type": "boolean"}, "runtime/engine.py"),
    "optimizer.params.adam_w_mode": ({"type": "boolean"}, "runtime/engine.py"),
    "optimizer.params.fp32_optimizer_states": ({"type": "boolean"}, "runtime/engine.py"),
    "optimizer.params.ns_method": ({"type": "text"}, "runtime/zero/muon/original_muon.py"),
    # schedulers; `exact` refuses 1e3 for a whole number
    "scheduler.params.warmup_num_steps": (
        {**_POSITIVE, "exact": True},
        "runtime/lr_schedules.py",
    ),
    "scheduler.params.lr_range_test_step_size": (
        {**_POSITIVE, "exact": True},
        "runtime/lr_schedules.py",
    ),
    "scheduler.params.total_num_steps": (_POSITIVE, "runtime/lr_schedules.py"),
    "scheduler.params.warmup_type": (
        {"type": "text", "words": ["log", "linear"]},
        "runtime/lr_schedules.py",
    ),
    "scheduler.params.warmup_min_lr": (_RATE, "runtime/lr_schedules.py"),
    "scheduler.params.warmup_max_lr": ({**_RATE, "null": True}, "runtime/lr_schedules.py"),
    "scheduler.params.lr_range_test_min_lr": (_RATE, "runtime/lr_schedules.py"),
    "scheduler.params.cycle_min_lr": (_RATE, "runtime/lr_schedules.py"),
    "scheduler.params.cycle_max_lr": (_RATE, "runtime/lr_schedules.py"),
    "scheduler.params.cycle_min_mom": (_RATE, "runtime/lr_schedules.py"),
    "scheduler.params.cycle_max_mom": (_RATE, "runtime/lr_schedules.py"),
    "scheduler.params.T_max": (_POSITIVE, "torch/optim/lr_scheduler.py"),
    "scheduler.params.T_0": (_POSITIVE, "torch/optim/lr_scheduler.py"),
    "scheduler.params.T_mult": (_POSITIVE, "torch/optim/lr_scheduler.py"),
    "scheduler.params.step_size": (_POSITIVE, "torch/optim/lr_scheduler.py"),
    "scheduler.params.cycle_first_step_size": (
        {"type": "number", "gt": 0},
        "runtime/lr_schedules.py",
    ),
    "scheduler.params.cycle_second_step_size": (
        {"type": "number", "ge": 0, "null": True},
        "runtime/lr_schedules.py",
    ),
}  # fmt: skip


def of_annotation(annotation: Any, metadata: Iterable[Any] = ()) -> Node:
    """Return the node of a type: `int`, `float | None`, `Literal["a", "b"]`, an enumeration …

    Args:
        annotation: the type, resolved.
        metadata: pydantic's bounds of it.
    """
    node: Node = {}
    args = list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        if type(None) in args:
            args.remove(type(None))
            node["null"] = True
        nodes = [of_annotation(arg) for arg in args]
        node |= nodes[0]
        if len(nodes) > 1:
            node["type"] = [part.get("type", "any") for part in nodes]
    elif typing.get_origin(annotation) is typing.Literal:
        node |= {"type": "text", "words": args}
    elif inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        words = list(dict.fromkeys(member.value for member in annotation))
        node |= {"type": "integer" if isinstance(words[0], int) else "text", "words": words}
    else:
        origin = typing.get_origin(annotation) or annotation
        node["type"] = _NAMES.get(origin, "any" if origin in (object, Any) else "nothing")
        if node["type"] == "list" and args and args[0] is not Ellipsis:
            node["items"] = of_annotation(args[0])
    for bound in metadata:
        for name in ("ge", "gt", "le", "lt"):
            if isinstance(bound, getattr(annotated_types, name.capitalize())):
                node[name] = getattr(bound, name)
    return node


def of_default(default: Any, annotation: Any = "") -> Node:
    """The node of a value that code looks up with a default; None says nothing of its type."""
    for type_ in (bool, int, float, str):
        if isinstance(default, type_):
            return {"type": "number" if type_ is float else _NAMES[type_]}
    if isinstance(default, list | tuple):
        return {"type": "list", "length": len(default)} if default else {"type": "list"}
    text = str(annotation)
    if default is None and "bool" in text:
        return {"type": "boolean", "null": True}
    if default is None and ("float" in text or "int" in text):
        return {"type": "number", "null": True}
    return {"type": "any"}


def of_parameters(class_: type, section: str) -> Node:
    """Return the parameters of an optimizer or a scheduler, and which are required.

    Args:
        class_: the class that DeepSpeed makes from the config.
        section: `optimizer` or `scheduler`, whose values `CHECKED_IN_CODE` knows more of.
    """
    keys: dict[str, Node] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(class_).parameters.items():
        if name in ("self", "params", "model_params", "optimizer"):
            continue
        keys[name] = of_parameter(name, parameter.default, parameter.annotation, section)
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    return {"keys": dict(sorted(keys.items())), "required": required}


def of_parameter(name: str, default: Any, annotation: Any, section: str) -> Node:
    """Return the node of one parameter of an optimizer or a scheduler."""
    given = CHECKED_IN_CODE.get(f"{section}.params.{name}")
    if given is not None:
        return dict(given[0])
    if default is inspect.Parameter.empty:
        default = None
    return of_default(default, annotation)
