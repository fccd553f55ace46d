"""`make bench-gpu`: the planner against an NVIDIA GPU: allocated memory and tokens per second.

Each configuration is a training of some steps by the real engine in a process of its own, on
weights drawn at random; the allocator's peaks and the time of the last steps stand beside what the
plan of the same recipe says. `--list` shows the configurations and starts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from dslm.cluster.detect import local_cluster
from dslm.decide.job import Job, resolve_job
from dslm.host.network import free_port
from dslm.recipe.load import load_recipe

STEPS = 8  # the first half isn't timed
NO_DEVICE = "there is no CUDA device here: `make bench-gpu` needs one; `--list` shows what it runs"
_FAILED, _NO_GPU = 1, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One training on one GPU."""

    preset: str
    zero_stage: int = 0
    offload: str = "none"
    activation_checkpointing: bool = False
    length: int = 1024
    micro: int = 4
    lora: bool = False
    liger: bool = False

    def overrides(self) -> list[str]:
        """The preset's recipe, changed."""
        found = [
            "model.init=scratch",
            f"model.activation_checkpointing={str(self.activation_checkpointing).lower()}",
            f"model.liger={str(self.liger).lower()}",
            f"data.sequence_length={self.length}",
            f"batch.micro_size={self.micro}",
            f"batch.global_size={self.micro}",
            f"parallel.zero_stage={self.zero_stage}",
            f"parallel.offload={self.offload}",
        ]
        return [*found, "lora={}"] if self.lora else found


CONFIGURATIONS = (
    *(Configuration(preset="gpt2-124m", zero_stage=stage, micro=8) for stage in range(4)),
    Configuration(preset="smollm2-360m", zero_stage=1, length=2048),
    Configuration(preset="smollm2-360m", zero_stage=1, length=2048, liger=True),
    Configuration(preset="qwen3-0.6b", zero_stage=2),
    Configuration(preset="qwen3-0.6b", zero_stage=2, offload="optimizer"),
    Configuration(preset="llama-3.2-1b", zero_stage=1),
    Configuration(preset="llama-3.2-1b", zero_stage=1, length=4096, micro=1),
    Configuration(preset="llama-3.2-1b", zero_stage=1, activation_checkpointing=True),
    Configuration(preset="llama-3.2-1b", zero_stage=1, liger=True),
    Configuration(
        preset="llama-3.2-1b", zero_stage=3, offload="all", activation_checkpointing=True
    ),
    Configuration(preset="llama-3.2-3b", zero_stage=0, lora=True, micro=2),
    Configuration(preset="llama-3.2-3b", zero_stage=2, offload="optimizer", micro=2),
    Configuration(
        preset="llama-3.2-3b", zero_stage=1, activation_checkpointing=True, liger=True, micro=2
    ),
)


def decided(configuration: Configuration) -> Job:
    """The job of a configuration, on one device of this machine."""
    loaded = load_recipe(configuration.preset, configuration.overrides())
    return resolve_job(loaded, local_cluster(num_gpus=1))


def measure(configuration: Configuration) -> dict[str, Any]:
    """Train; the allocator's peaks and tokens per second, beside the plan's."""
    from pathlib import Path

    import deepspeed
    import torch

    from dslm.run.directory import RunDirectory
    from dslm.worker.arguments import training_arguments
    from dslm.worker.model import build_model

    job = decided(configuration)
    memory, planned = job.plan.choice.memory, job.plan.choice.time
    if memory is None:
        raise LookupError("the planner doesn't know this architecture")
    deepspeed.init_distributed("nccl")
    # transformers builds inside `zero.Init` while these are alive
    arguments = training_arguments(
        job.recipe,
        job.config.values,
        RunDirectory(Path("unused")),
        steps=STEPS,
        on_cpu=False,
        liger=configuration.liger,
    )
    model = build_model(job.recipe, "AutoModelForCausalLM", None)
    if configuration.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    if configuration.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=job.config.values,
    )
    model.train()
    shape = (configuration.micro, configuration.length)
    half = torch.arange(configuration.length // 2)
    positions = torch.cat([half, half]).repeat(configuration.micro, 1).cuda()
    began = 0.0
    for step in range(STEPS):
        if step == STEPS // 2:
            torch.cuda.synchronize()
            began = time.perf_counter()
        ids = torch.randint(1, 1000, shape, device="cuda")
        loss = engine(input_ids=ids, position_ids=positions, labels=ids).loss
        engine.backward(loss)
        engine.step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / (STEPS - STEPS // 2)
    del arguments
    return {
        "device": torch.cuda.get_device_name(),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "predicted": memory.total - memory.context,
        "tokens_per_second": configuration.micro * configuration.length / seconds,
        "predicted_tokens_per_second": planned.tokens_per_second if planned else None,
    }


def run(configuration: Configuration) -> dict[str, Any]:
    """Measure in a process of its own: a GPU's memory is only given back when one ends."""
    environment = {
        **os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    argv = [
        sys.executable,
        "-m",
        "benchmarks.planner_gpu",
        "--one",
        json.dumps(asdict(configuration)),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def title(configuration: Configuration) -> str:
    """A configuration in a line."""
    parts = [configuration.preset, f"ZeRO {configuration.zero_stage}"]
    if configuration.offload != "none":
        parts.append(f"offload {configuration.offload}")
    parts += [
        name
        for name, on in (
            ("recomputes", configuration.activation_checkpointing),
            ("LoRA", configuration.lora),
            ("Liger", configuration.liger),
        )
        if on
    ]
    return f"{', '.join(parts)}, {configuration.micro} × {configuration.length}"


def _line(configuration: Configuration, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"| {title(configuration)} | failed: {found['error'][:80]} | | | | |"
    allocated, predicted = found["allocated"], found["predicted"]
    speed, planned = found["tokens_per_second"], found["predicted_tokens_per_second"]
    expected = f"{planned:.0f} ({planned / speed - 1:+.0%})" if planned else "not known"
    return (
        f"| {title(configuration)} | {allocated / 2**30:.2f} GiB "
        f"| {found['reserved'] / 2**30:.2f} GiB "
        f"| {predicted / 2**30:.2f} GiB ({predicted / allocated - 1:+.1%}) | {speed:.0f} "
        f"| {expected} |"
    )


def main() -> int:
    """Run all, or say why not."""
    parser = argparse.ArgumentParser(description="The planner against a GPU.")
    parser.add_argument("--list", action="store_true", help="show the configurations")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Configuration(**json.loads(options.one)))))
        return 0
    if options.list:
        for configuration in CONFIGURATIONS:
            print(title(configuration))
        return 0
    import torch

    if not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return _NO_GPU
    print("| configuration | allocated | reserved | predicted | tokens/s | predicted |")
    print("|---|---|---|---|---|---|")
    failed = 0
    for configuration in CONFIGURATIONS:
        found = run(configuration)
        failed += "error" in found
        print(_line(configuration, found), flush=True)
    return _FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
