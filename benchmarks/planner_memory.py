"""The planner's memory against DeepSpeed itself: live tensor bytes of real engines, by phase.

Two CPU ranks train each configuration for two steps with the code that `dslm train` uses; every
tensor's memory is followed from its making to its end. Beside it stands what the plan of the same
recipe says (without the context, which isn't tensors).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.planner_large import trained
from dslm.cluster.detect import local_cluster
from dslm.decide.job import Job, resolve_job
from dslm.host.network import free_port
from dslm.recipe.load import load_recipe

BIN = Path(sys.executable).parent
PHASES = ("init", "forward", "backward", "step")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 4096, "n_embd": 384, "n_layer": 6, "n_head": 6,
        "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "qwen3": {
        "model_type": "qwen3", "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
        "max_position_embeddings": 512, "tie_word_embeddings": False,
    },
}  # fmt: skip
LENGTH = 256
MEAN_ERROR, WORST_ERROR = 0.02, 0.05


KEYS = (
    "architecture", "zero_stage", "offload", "activation_checkpointing", "micro", "precision",
    "accumulation", "lora",
)  # fmt: skip
# several micro batches a step, and adapters
_MORE = (
    ("llama", 0, "none", False, 2, "fp32", 2, 0), ("gpt2", 1, "none", True, 2, "bf16", 2, 0),
    ("llama", 1, "none", False, 1, "fp32", 2, 0), ("qwen3", 2, "none", False, 2, "bf16", 4, 0),
    ("gpt2", 2, "optimizer", False, 2, "bf16", 2, 0), ("llama", 3, "none", True, 4, "bf16", 2, 0),
    ("qwen3", 3, "optimizer", False, 2, "fp32", 2, 0), ("llama", 0, "none", False, 4, "bf16", 1, 8),
    ("qwen3", 1, "none", True, 4, "bf16", 1, 8), ("gpt2", 2, "none", False, 2, "bf16", 1, 8),
    ("llama", 2, "none", True, 2, "fp32", 1, 16), ("qwen3", 3, "none", False, 4, "bf16", 1, 8),
    ("llama", 3, "optimizer", False, 2, "bf16", 1, 8),
)  # fmt: skip


def configurations() -> list[dict[str, Any]]:
    """Every stage, offload, recomputation, precision; architectures and micro batches in turn.

    And a few with several micro batches a step, and with adapters.
    """
    places = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"),
              (3, "optimizer"), (3, "all")]  # fmt: skip
    found = []
    micros = itertools.cycle([1, 4, 2, 8])
    architectures = itertools.cycle(ARCHITECTURES)
    for (stage, offload), again, precision in itertools.product(
        places, (False, True), ("fp32", "bf16")
    ):
        for _ in range(2):
            found.append({
                "architecture": next(architectures), "zero_stage": stage, "offload": offload,
                "activation_checkpointing": again, "micro": next(micros), "precision": precision,
            })  # fmt: skip
        next(micros)
    return found + [dict(zip(KEYS, row, strict=True)) for row in _MORE]


def overrides(configuration: dict[str, Any]) -> list[str]:
    """The recipe of a configuration, as changes of the quickstart."""
    architecture = json.dumps(ARCHITECTURES[configuration["architecture"]])
    return [
        f'model={{"init": "scratch", "tokenizer": "none", "architecture": {architecture}}}',
        f"model.activation_checkpointing={str(configuration['activation_checkpointing']).lower()}",
        f"data.sequence_length={LENGTH}",
        f"batch.micro_size={configuration['micro']}",
        f"batch.global_size={configuration['micro'] * 2 * configuration.get('accumulation', 1)}",
        f"parallel.zero_stage={configuration['zero_stage']}",
        f"parallel.offload={configuration['offload']}",
        f"precision={configuration['precision']}",
        *([f"lora.rank={configuration['lora']}"] if configuration.get("lora") else []),
    ]


def _planned_job(configuration: dict[str, Any]) -> Job:
    return resolve_job(
        load_recipe("quickstart", overrides(configuration)), local_cluster(num_gpus=2)
    )


def planned(configuration: dict[str, Any]) -> dict[str, int]:
    """What the plan says of each phase, without the process itself."""
    memory = _planned_job(configuration).plan.choice.memory
    if memory is None:
        raise LookupError("the planner doesn't know this architecture")
    # on a CPU, what is offloaded lies in the same memory
    return {name: memory.phases[name] - memory.context + memory.host_states for name in PHASES}


def measure(configuration: dict[str, Any], *, explain: bool = False) -> dict[str, int]:
    """Peaks of each phase of the first steps, on this rank."""
    import gc

    import deepspeed

    from benchmarks.live import Live
    from dslm.run.directory import RunDirectory
    from dslm.worker.arguments import training_arguments
    from dslm.worker.model import build_model

    job = _planned_job(configuration)
    config = job.config.values
    recipe = job.recipe
    live = Live(explain=explain)
    peaks = dict.fromkeys(PHASES, 0)

    def end(phase: str) -> None:
        peaks[phase] = max(peaks[phase], live.peak)
        gc.collect()
        if explain and phase != "init":
            print(f"{phase} {live.peak / 2**20:.2f}\n{live.report()}", flush=True)
        following = {"forward": "backward", "backward": "step", "step": "forward"}.get(phase)
        live.start_phase(peaks[following] if following else None)

    gc.collect()
    with live:
        arguments = training_arguments(
            recipe, config, RunDirectory(Path("unused")), steps=10, on_cpu=True, liger=False
        )
        model = build_model(recipe, "AutoModelForCausalLM", None)
        if recipe.model.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=model.parameters(), config=config
        )
        model.train()
        end("init")
        steps = configuration.get("accumulation", 1)
        for number in range((3 if explain else 2) * steps):
            batch = _batch(configuration["micro"])
            loss = engine(**batch).loss
            end("forward")
            engine.backward(loss)
            end("backward")
            del loss, batch
            engine.step()
            if (number + 1) % steps == 0:
                end("step")
    engine.destroy()
    del engine, model, arguments
    gc.collect()
    return peaks


def _batch(micro: int) -> dict[str, Any]:
    """A batch as the task makes it: two documents in a sample, none sees the other."""
    import torch

    ids = torch.randint(1, 2048, (micro, LENGTH))
    half = torch.arange(LENGTH // 2)
    positions = torch.cat([half, half]).repeat(micro, 1)
    return {"input_ids": ids, "position_ids": positions, "labels": ids.clone()}


def worker(source: Path, target: Path) -> None:
    """Measure every configuration of a file, on two ranks; rank 0 writes."""
    import deepspeed
    import torch.distributed as dist

    deepspeed.init_distributed("gloo")
    rows = []
    for configuration in json.loads(source.read_text()):
        rows.append({**configuration, "measured": measure(configuration)})
        if dist.get_rank() == 0:
            target.write_text(json.dumps(rows))
    dist.barrier()


def run(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure configurations in two ranks of DeepSpeed's launcher."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.json", Path(name) / "out.json"
        source.write_text(json.dumps(found))
        argv = [
            sys.executable, str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port",
            str(free_port()), "--no_local_rank", "--module", "benchmarks.planner_memory",
            str(source), str(target),
        ]  # fmt: skip
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(argv, capture_output=True, text=True, env=environment)
        rows: list[dict[str, Any]] = json.loads(target.read_text()) if target.is_file() else []
        if len(rows) < len(found):
            sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        return rows


def errors(rows: list[dict[str, Any]]) -> Iterator[float]:
    """Error of the planned peak of each row, relative to the measured one."""
    for row in rows:
        measured = max(row["measured"].values())
        yield max(planned(row).values()) / measured - 1


def within_bounds(found: list[float]) -> bool:
    """Whether absolute errors are 2 % on average and 5 % at worst, or less."""
    return mean(found) <= MEAN_ERROR and max(found) <= WORST_ERROR


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, people's units."""
    lines = [
        "| model | trained | ZeRO | offload | recomputes | micro batch | precision | measured "
        "| plan | off |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, error in zip(rows, errors(rows), strict=True):
        again = "yes" if row["activation_checkpointing"] else "no"
        times = row.get("accumulation", 1)
        micro = f"{row['micro']} × {times}" if times > 1 else str(row["micro"])
        lines.append(
            f"| {row['architecture']} | {trained(row.get('lora', 0))} | {row['zero_stage']} "
            f"| {row['offload']} | {again} | {micro} | {row['precision']} "
            f"| {max(row['measured'].values()) / 2**20:.1f} MiB "
            f"| {max(planned(row).values()) / 2**20:.1f} MiB | {error:+.1%} |"
        )
    found = [abs(error) for error in errors(rows)]
    lines.append(
        f"\n{len(rows)} configurations: off by {mean(found):.2%} on average, by {max(found):.2%} "
        "at worst."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]))
