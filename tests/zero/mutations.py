"""Configs that are wrong in one or two places, made from good ones by a seed."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

from dslm.presets import shipped_folder
from dslm.zero.keys import Key, table

Config = dict[str, Any]
# Good configs that together hold a value of nearly every section.
_BY_HAND: tuple[Config, ...] = (
    {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "steps_per_print": 10,
        "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "min_loss_scale": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_num_steps": 10, "total_num_steps": 100, "warmup_type": "linear"},
        },
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 5e8,
            "stage3_max_live_parameters": 1000000,
            "offload_optimizer": {"device": "cpu", "ratio": 0.5, "buffer_count": 4},
            "offload_param": {"device": "cpu", "buffer_size": 1e8},
        },
        "activation_checkpointing": {"partition_activations": True, "number_checkpoints": 4},
    },
    {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
        "gradient_allreduce_op": "mean",
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "offload_optimizer": {"device": "cpu"},
            "zenflow": {"topk_ratio": 0.1, "select_strategy": "auto", "update_interval": "auto"},
        },
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "weight_decay": 0.1}},
        "checkpoint": {"tag_validation": "Warn", "writer": {"type": "fast"}},
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
        "tensorboard": {"enabled": True, "output_path": "logs"},
        "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1},
    },
    {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 100}},
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": ["norm"]},
        "compile": {"deepcompile": False, "passes": ["z1"]},
        "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False},
        "tensor_parallel": {"autotp_size": 1},
        "expert_parallel": {"enabled": False, "autoep_size": 1},
        "timers": {"throughput": {"enabled": True}},
        "wandb": {"enabled": False, "project": "x"},
        "hybrid_engine": {"enabled": False, "max_out_tokens": 512},
        "prescale_gradients": False,
        "wall_clock_breakdown": False,
    },
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, -1, 0.5, 2.5, 5e8, 10**30, math.inf, math.nan, "maybe", "auto",
    "5", "true", "cpu", "fp16", "", [], {}, [1], ["x"], {"enabled": True}, [0.9], [0.9, 1.5],
)  # fmt: skip


def bases() -> list[Config]:
    """The good configs: the shipped ones, those by hand, and what they are for the Trainer."""
    shipped = [
        json.loads(file.read_text()) for file in sorted(shipped_folder("ds_configs").glob("*.json"))
    ]
    trainer = copy.deepcopy(_BY_HAND[0])
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        trainer[key] = "auto"
    trainer["fp16"]["enabled"] = "auto"
    return [*shipped, *_BY_HAND, trainer]


def mutated(seed: int, among: list[Config]) -> Config:
    """One of them, wrong (or only other) in one or two places."""
    pick = random.Random(seed)
    config = copy.deepcopy(pick.choice(among))
    for _ in range(pick.choice((1, 1, 2))):
        pick.choice((_replace, _replace, _replace, _add, _add, _remove, _misspell, _move))(
            config, pick
        )
    return config


def _places(config: Config) -> list[tuple[Config, str]]:
    """Every key with the mapping that it is in."""
    found: list[tuple[Config, str]] = []
    for key, value in config.items():
        found.append((config, key))
        if isinstance(value, dict):
            found += _places(value)
    return found


def _replace(config: Config, pick: random.Random) -> None:
    if config:
        section, key = pick.choice(_places(config))
        section[key] = copy.deepcopy(pick.choice(_VALUES))


def _remove(config: Config, pick: random.Random) -> None:
    if config:
        section, key = pick.choice(_places(config))
        del section[key]


def _misspell(config: Config, pick: random.Random) -> None:
    if config:
        section, key = pick.choice(_places(config))
        at = pick.randrange(len(key))
        section[key[:at] + key[at + 1 :]] = section.pop(key)


def _move(config: Config, pick: random.Random) -> None:
    """A key to the top level, where it isn't looked for."""
    below = [(section, key) for section, key in _places(config) if section is not config]
    if below:
        section, key = pick.choice(below)
        config.setdefault(key, section.pop(key))


def _add(config: Config, pick: random.Random) -> None:
    """A key that DeepSpeed knows, with a value that its type may or may not allow."""
    node: Key = table().top
    section: Any = config
    while node.keys and isinstance(section, dict):
        name = pick.choice(sorted(node.keys))
        node = node.keys[name]
        if not node.keys:
            section[name] = copy.deepcopy(pick.choice(_VALUES))
            return
        section = section.setdefault(name, {})
