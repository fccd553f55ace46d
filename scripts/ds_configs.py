"""ds_configs/: a DeepSpeed config for each partitioning strategy, composed from a few parts.

`make docs` writes them and the table of their README; `make check` says which are not current.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass

from dslm.codec import Json

Part = Mapping[str, Json]
_BUCKET = 50_000_000

# the optimizer and the micro batch are the Hugging Face Trainer's defaults
BASE: Part = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 5e-05, "betas": [0.9, 0.999], "eps": 1e-08, "weight_decay": 0.0},
    },
}
_REDUCED: Part = {
    "reduce_bucket_size": _BUCKET,
    "allgather_bucket_size": _BUCKET,
    "overlap_comm": True,
    "contiguous_gradients": True,
}
_PARTITIONED: Part = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": _BUCKET,
    "stage3_prefetch_bucket_size": _BUCKET,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_gather_16bit_weights_on_model_save": True,
}
STAGES: Mapping[int, Part] = {
    0: {"stage": 0},
    1: {"stage": 1, **_REDUCED},
    2: {"stage": 2, **_REDUCED},
    3: {"stage": 3, **_PARTITIONED},
}
_HOST: Part = {"device": "cpu", "pin_memory": True}
_DISK: Part = {"device": "nvme", "nvme_path": "/local_nvme", "pin_memory": True}
_PIPELINE: Part = {"pipeline_read": True, "pipeline_write": True}
OPTIMIZER: Part = {"offload_optimizer": _HOST}
ALL: Part = {**OPTIMIZER, "offload_param": _HOST}
NVME: Part = {"offload_optimizer": {**_DISK, **_PIPELINE}, "offload_param": _DISK}
_AIO: Part = {
    "block_size": 1_048_576, "queue_depth": 8, "single_submit": False, "overlap_events": True,
}  # fmt: skip
_ZENFLOW: Part = {
    "topk_ratio": 0.1, "select_strategy": "step", "select_interval": 16, "update_interval": 4,
}  # fmt: skip
_ZEROPP: Part = {
    "zero_hpz_partition_size": 8, "zero_quantized_weights": True, "zero_quantized_gradients": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Strategy:
    """A preset: its stage, what else of ZeRO it sets, what else at the top, and what it is for."""

    name: str
    what: str
    stage: int
    zero: Part
    more: Part


def _host(**more: Json) -> Part:
    return {"offload_optimizer": {**_HOST, **more}}


_EXPERTS: Part = {"enabled": True, "autoep_size": 2}
STRATEGIES = (
    Strategy("zero0", "nothing: plain data parallelism", 0, {}, {}),
    Strategy("zero1", "optimizer state", 1, {}, {}),
    Strategy("zero2", "optimizer state and gradients", 2, {}, {}),
    Strategy("zero3", "optimizer state, gradients and parameters", 3, {}, {}),
    Strategy(
        "zero1-offload-optimizer", "as zero1; optimizer state in the host's memory", 1,
        OPTIMIZER, {},
    ),
    Strategy(
        "zero2-offload-optimizer", "as zero2; optimizer state in the host's memory", 2,
        OPTIMIZER, {},
    ),
    Strategy(
        "zero3-offload-optimizer", "as zero3; optimizer state in the host's memory", 3,
        OPTIMIZER, {},
    ),
    Strategy(
        "zero3-offload-all", "as zero3; optimizer state and parameters in the host's memory", 3,
        ALL, {},
    ),
    Strategy(
        "zero3-offload-nvme",
        "as zero3; optimizer state and parameters on a local disk, `nvme_path`", 3,
        NVME, {"aio": _AIO},
    ),
    Strategy(
        "twin-flow", "as zero3; half of the optimizer state in the host's memory (Twin-Flow)", 3,
        _host(ratio=0.5), {},
    ),
    Strategy(
        "super-offload", "as zero3; the host updates while the backward pass goes on "
        "(SuperOffload, CUDA)", 3, _host(super_offload=True), {},
    ),
    Strategy(
        "zenflow", "as zero2-offload-optimizer; the most important columns stay on the device "
        "(ZenFlow; one micro batch a step)", 2, {**OPTIMIZER, "zenflow": _ZENFLOW}, {},
    ),
    Strategy(
        "zeropp",
        "as zero3 with ZeRO++: a second partition inside each host of 8, quantized messages", 3,
        _ZEROPP, {},
    ),
    Strategy(
        "deepcompile", "as zero3; the model compiled with DeepSpeed's passes (DeepCompile, CUDA)",
        3, {}, {"compile": {"deepcompile": True}},
    ),
    Strategy(
        "autotp", "tensor parallelism over 2 ranks, optimizer state over the others", 1, {},
        {"tensor_parallel": {"autotp_size": 2}},
    ),
    Strategy(
        "autoep", "the experts of a mixture over 2 ranks, optimizer state over all", 1, {},
        {"expert_parallel": _EXPERTS},
    ),
    Strategy(
        "sequence-parallel", "each sequence over 2 ranks (Ulysses), states as zero3", 3, {},
        {"sequence_parallel_size": 2},
    ),
    Strategy(
        "long-context",
        "each sequence over 2 ranks, states as zero3-offload-all: the device has the activations",
        3, ALL, {"sequence_parallel_size": 2},
    ),
)  # fmt: skip


def config(strategy: Strategy) -> dict[str, Json]:
    """The whole config of a strategy."""
    zero = {**STAGES[strategy.stage], **strategy.zero}
    return copy.deepcopy({**BASE, "zero_optimization": zero, **strategy.more})


def files() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        f"{strategy.name}.json": json.dumps(config(strategy), indent=2) + "\n"
        for strategy in STRATEGIES
    }


def table() -> str:
    """The strategies as a table of Markdown."""
    rows = ["| file | what is partitioned or moved |", "|---|---|"]
    rows += [f"| {strategy.name}.json | {strategy.what} |" for strategy in STRATEGIES]
    return "\n".join(rows)
