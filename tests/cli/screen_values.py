"""Fixed values that screens are drawn from, so that they look the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from dslm.cluster.devices import cpu_device
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.job import Job
from dslm.launch.sites import SITES
from dslm.launch.spec import LaunchRequest
from dslm.lifecycle.fleet import Fleet
from dslm.plan.runnable import nothing_shared
from dslm.plan.search import Plan
from dslm.reach.checks import CHECKS, CheckResult, State
from dslm.reach.preflight import Preflight
from dslm.recipe.load import load_recipe
from dslm.run.attempt import Attempt, ControlAddress
from dslm.zero.generate import ResolvedConfig

GIB = 2**30
_CHOICE: dict[str, Any] = {
    "zero_stage": 3, "offload": "optimizer", "micro_batch_size": 2,
    "gradient_accumulation_steps": 8, "activation_checkpointing": True,
    "tensor_parallel": 2, "sequence_parallel": 1, "expert_parallel": 1, "data_parallel_size": 8,
}  # fmt: skip
PLAN: dict[str, Any] = {
    "model": {
        "parameters": 8_030_261_248, "exact": False, "off": 0.004, "untraced": None,
    },
    "cluster": {"device": "h100-80gb", "hosts": 2, "world_size": 16},
    "choice": _CHOICE,
    "memory": {
        "device": {
            "parameters": 2 * GIB, "gradients": 2 * GIB, "optimizer": 11 * GIB,
            "activations": 20 * GIB, "logits": 16 * GIB, "buffers": 3 * GIB, "context": GIB,
            "total": 55 * GIB, "peak_phase": "backward",
        },
        "host": {
            "total": 150 * GIB, "pinned": 90 * GIB, "pageable": 0, "process": 30 * GIB,
            "loading": 30 * GIB, "export": 0, "capacity": 500 * GIB, "fits": True,
        },
        "capacity": 80 * GIB, "margin": 0.06,
    },
    "fits": True,
    "time": {
        "step_seconds": 12.4, "tokens_per_second": 84_600.0, "mfu": 0.41, "bound_by": "compute",
        "error": 0.12, "source": "NVIDIA H100 datasheet, 2023", "unit": "tokens",
        "total_seconds": 44_640.0, "gpu_hours": 198.4,
    },
    "runners_up": [
        {**_CHOICE, "micro_batch_size": 1, "why": "12% slower"},
        {**_CHOICE, "offload": "none", "why": "does not fit: 91.3 GiB"},
    ],
    "smallest_world_size": 4,
    "long_samples": {"on": {}, "left_out": {}},
}  # fmt: skip

HOSTS = (Host("w1", 8), Host("w2", 8), Host("worker-3.example.org", 8))
_FOUND = {
    ("w2", "versions"): (
        State.WRONG, "torch 2.12.1, here 2.13.0",
        "install the same version there: pip install torch==2.13.0",
    ),
    ("w2", "clock"): (State.NOTE, "3.2 s behind", "synchronise it, with chrony for example"),
    ("w2", "disk"): (State.WRONG, "1.2 GiB free", "make room: 5.0 GiB are needed"),
}  # fmt: skip
PREFLIGHT = Preflight(
    results=(
        *(
            CheckResult(host=host.name, check=check, state=state, detail=detail, fix=fix)
            for host in HOSTS[:2]
            for check in CHECKS
            for state, detail, fix in (_FOUND.get((host.name, check), (State.OK, "", "")),)
        ),
        CheckResult(
            host=HOSTS[2].name, check="ssh", state=State.WRONG,
            detail="Permission denied (publickey)",
            fix=f"ssh-copy-id {HOSTS[2].name}",
        ),
    ),
    master_address="10.0.0.1",
    interfaces={"w1": "eth0", "w2": "ens3"},
    seconds=1.84,
)  # fmt: skip

CLUSTER = Cluster(hosts=(Host("w1", 4), Host("w2", 4)), device=cpu_device(32 * GIB))
FLEET = Fleet(cluster=CLUSTER, site=SITES["pdsh"], max_restarts=3)
REQUEST = LaunchRequest(
    argv=("deepspeed", "--hostfile", "runs/mine/hostfile", "--module", "dslm.worker.main"),
    environment={"PDSH_RCMD_TYPE": "ssh"},
    files={Path("runs/mine/hostfile"): "w1 slots=4\nw2 slots=4\n"},
)
ATTEMPT = Attempt(
    number=0,
    hosts=(("w1", 4), ("w2", 4)),
    master_address="10.0.0.1",
    master_port=29500,
    control=ControlAddress(addresses=(), port=0, token=""),
    folder="/home/ada",
)
CONFIG = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 2},
}


def job() -> Job:
    """Resolve the smallest preset by hand: the planner has no part in how a screen looks."""
    loaded = load_recipe("quickstart", ())
    return Job(
        left_out={},
        permits=nothing_shared,
        asked=loaded,
        recipe=loaded.recipe,
        cluster=CLUSTER,
        profile=None,
        untraced="",
        plan=cast("Plan", None),  # no screen of a dry run reads it
        config=ResolvedConfig(preset="zero2", values=CONFIG, reasons={}),
    )


FAILURE: dict[str, Any] = {
    "time": 1795632120.0, "event": "error", "attempt": 2, "id": "out-of-memory", "stage": "train",
    "message": "the device has no memory left", "cause": "the device has no memory left",
    "said": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "ways": [
        "`--set batch.micro_size=2`: 61.3 GiB a rank, 4% slower",
        "`--set parallel.zero_stage=3`: 48.0 GiB a rank, 11% slower",
    ],
    "facts": ["predicted 74.9 GiB, measured 78.2 GiB on rank 3"],
    "rank": 3, "host": "w1", "step": 56, "log": "logs/attempt-2/rank-3.log",
    "followers": [0, 1, 2], "retry": False, "known": True,
}  # fmt: skip
