"""What DeepSpeed itself says of a config: its own parsing, and its own making of what it names.

`DeepSpeedConfig` reads it with as many ranks as the batch sizes ask for; then the optimizer and the
scheduler are made as `DeepSpeedEngine` makes them (`_configure_basic_optimizer`,
`_scheduler_from_config`), on one small parameter. "auto" is filled as the Trainer fills it.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
from typing import Any
from unittest.mock import patch

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import FusedLion
from deepspeed.runtime import config as runtime
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import logger

Config = dict[str, Any]
_FILLED: Config = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "fp16.enabled": False,
    "bf16.enabled": False,
    "optimizer.params.lr": 1e-4,
    "optimizer.params.betas": [0.9, 0.99],
    "optimizer.params.eps": 1e-8,
    "optimizer.params.weight_decay": 0.0,
    "scheduler.params.warmup_min_lr": 0,
    "scheduler.params.warmup_max_lr": 1e-4,
    "scheduler.params.warmup_num_steps": 10,
    "scheduler.params.total_num_steps": 100,
    "zero_optimization.reduce_bucket_size": 1000,
    "zero_optimization.stage3_prefetch_bucket_size": 1000,
    "zero_optimization.stage3_param_persistence_threshold": 1000,
    "zero_optimization.stage": 2,
    "zero_optimization.offload_optimizer.device": "none",
    "zero_optimization.offload_param.device": "none",
    "zero_optimization.offload_optimizer.nvme_path": None,
    "zero_optimization.offload_param.nvme_path": None,
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": True,
}
_OWN = {
    "adam": (DeepSpeedCPUAdam, FusedAdam, torch.optim.AdamW),
    "adamw": (DeepSpeedCPUAdam, FusedAdam, torch.optim.AdamW),
    "adagrad": (DeepSpeedCPUAdagrad, torch.optim.Adagrad),
    "lamb": (FusedLamb,),
    "lion": (FusedLion,),
}


def refusal(config: Config) -> str:
    """Why DeepSpeed refuses a config, or "" if it takes it."""
    logger.setLevel(logging.CRITICAL)
    config = copy.deepcopy(config)
    total_is_auto = config.get("train_batch_size") == "auto"
    config = _fill(config)
    if total_is_auto:
        config["train_batch_size"] = _product(config)
    size = _ranks(config)
    try:
        with (
            patch.object(runtime.dist, "get_rank", lambda *_: 0),
            patch.object(runtime.dist, "get_world_size", lambda *_: size),
        ):
            parsed = runtime.DeepSpeedConfig(config)
        if parsed.optimizer_name is not None:
            _make_optimizer(parsed)
        if parsed.scheduler_name is not None:
            _make_scheduler(parsed)
    except (Exception, Warning) as failure:  # noqa: BLE001 - whatever it is, it is a refusal
        return f"{type(failure).__name__}: {failure}"
    return ""


def _fill(config: Config, above: str = "") -> Config:
    filled: Config = {}
    for key, value in config.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            filled[key] = _fill(value, f"{path}.")
        else:
            filled[key] = _FILLED.get(path, value) if value == "auto" else value
    return filled


def _product(config: Config) -> Any:
    """The batch of one rank, which the Trainer writes for "auto"."""
    micro = config.get("train_micro_batch_size_per_gpu", 4)
    steps = config.get("gradient_accumulation_steps", 1)
    try:
        return micro * steps
    except TypeError:
        return 4


def _ranks(config: Config) -> int:
    """The number of ranks at which the batch sizes can be right."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, steps = (config.get(name) for name in names)
    shared = config.get("sequence_parallel_size", 1)
    try:
        ranks = int(total // (micro * (steps or 1))) if total and micro else 1
        return max(1, ranks) * max(1, int(shared))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return 1


def _make_optimizer(parsed: runtime.DeepSpeedConfig) -> None:
    params = dict(parsed.optimizer_params or {})
    if "max_grad_norm" in params:
        raise ValueError("'max_grad_norm' is not supported as an optimizer parameter")
    name = parsed.optimizer_name
    if name in ("muadam", "muadamw", "musgd"):
        return
    for key in ("torch_adam", "adam_w_mode", "fp32_optimizer_states"):
        if name in ("adam", "adamw", "muon"):
            params.pop(key, None)
    weight = torch.nn.Parameter(torch.zeros(2))
    if name == "muon":
        for key in ("momentum", "ns_method", "muon_lr", "adam_lr"):
            params.pop(key, None)
        name = "adamw"
    classes = _OWN.get(name)
    if classes is None:
        made = getattr(torch.optim, name)([weight], **params)
        is_tested = type(made) in ZERO_SUPPORTED_OPTIMIZERS
        if parsed.zero_enabled and not is_tested and not parsed.zero_allow_untested_optimizer:
            raise AssertionError("You are using an untested ZeRO Optimizer")
        return
    fitting = [class_ for class_ in classes if params.keys() <= _names(class_)]
    if not fitting:
        raise TypeError(f"unexpected parameters for {name}: {sorted(params)}")
    # the kernels are not there; torch checks the same numbers
    common = {key: value for key, value in params.items() if key in _names(torch.optim.AdamW)}
    torch.optim.AdamW([weight], **common)


def _names(class_: type) -> set[str]:
    return set(inspect.signature(class_).parameters)


def _make_scheduler(parsed: runtime.DeepSpeedConfig) -> None:
    name = parsed.scheduler_name
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    params = parsed.scheduler_params
    if hasattr(lr_schedules, name):
        scheduler = getattr(lr_schedules, name)(optimizer, **params)
    else:
        wrapped = parsed.zero_enabled or parsed.float16_config.enabled
        if wrapped or parsed.bfloat16_config.enabled:
            raise TypeError("DeepSpeed's own optimizer is not an Optimizer")
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **params)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
