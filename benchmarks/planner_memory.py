"""The planner's memory against DeepSpeed itself: live tensor bytes of real engines, by phase.

Two CPU ranks train each configuration for two steps with the code that `dslm train` uses; every
tensor's memory is followed from its making to its end. Beside it stands what the plan of the same
recipe says (without the context, which isn't tensors). `benchmarks.planner_others` has the
configurations with other architectures, optimizers and sizes of buckets.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.commands import operators
from benchmarks.planner_architectures import ARCHITECTURES, TASKS
from benchmarks.planner_large import trained
from benchmarks.superoffload import on_a_cpu
from dslm.cluster.detect import local_cluster
from dslm.decide.job import Job, resolve_job
from dslm.host.network import free_port
from dslm.plan.superoffload import APART
from dslm.recipe.load import load_recipe

PHASES = ("init", "forward", "backward", "step")
THREE = ("llama", "gpt2", "qwen3")
LENGTH = 256
MEAN_ERROR, WORST_ERROR = 0.01, 0.04


KEYS = (
    "architecture", "zero_stage", "offload", "activation_checkpointing", "micro", "precision",
    "accumulation", "lora",
)  # fmt: skip
_ZERO = "deepspeed.zero_optimization"
_OF_PARTITIONED = (f"{_ZERO}.reduce_bucket_size=1000000", f"{_ZERO}.allgather_bucket_size=1000000")
_BUCKETS = (  # by stage
    (), _OF_PARTITIONED, _OF_PARTITIONED,
    (f"{_ZERO}.reduce_bucket_size=1000000", f"{_ZERO}.stage3_prefetch_bucket_size=900000"),
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
    architectures = itertools.cycle(THREE)
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
    name = configuration["architecture"]
    architecture = json.dumps(ARCHITECTURES[name])
    return [
        f'model={{"init": "scratch", "tokenizer": "none", "architecture": {architecture}}}',
        f"task={TASKS.get(name, 'pretrain')}",
        f"model.activation_checkpointing={str(configuration['activation_checkpointing']).lower()}",
        f"data.sequence_length={LENGTH}",
        f"batch.micro_size={configuration['micro']}",
        f"batch.global_size={configuration['micro'] * 2 * configuration.get('accumulation', 1)}",
        f"parallel.zero_stage={configuration['zero_stage']}",
        f"parallel.offload={configuration['offload']}",
        f"precision={configuration['precision']}",
        *([f"lora.rank={configuration['lora']}"] if configuration.get("lora") else []),
        # smaller than dslm's own, which would be most of what such small models keep
        *(_BUCKETS[configuration["zero_stage"]]),
        *configuration.get("settings", ()),
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
    # on a CPU, what is offloaded lies in the same memory, unless another process has it
    host = memory.host_states - sum(term.bytes for term in memory.terms if term.kind == APART)
    return {name: memory.phases[name] - memory.context + host for name in PHASES}


def measure(configuration: dict[str, Any], *, explain: bool = False) -> dict[str, int]:
    """Peaks of each phase of the first steps, on this rank."""
    import gc

    from benchmarks.live import Live

    job = _planned_job(configuration)
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
    gc.freeze()  # else each phase looks through all that the libraries define
    superoffload = job.recipe.parallel.super_offload
    with on_a_cpu() if superoffload else nullcontext(), live:
        engine, arguments = _engine(job)
        end("init")
        steps = configuration.get("accumulation", 1)
        # ZenFlow updates the rest of the columns every fourth step
        rounds = 6 if job.recipe.parallel.zenflow else 3 if explain else 2
        for number in range(rounds * steps):
            batch = _batch(job, engine.module, configuration)
            loss = _loss(job, engine, batch)
            end("forward")
            engine.backward(loss)
            end("backward")
            del loss, batch
            engine.step()
            if (number + 1) % steps == 0:
                end("step")
    engine.destroy()
    del engine, arguments
    gc.collect()
    return peaks


def _engine(job: Job) -> tuple[Any, Any]:
    """DeepSpeed's engine around the model of a job, and the arguments that must stay alive."""
    import deepspeed
    import torch.distributed as dist

    from dslm.run.directory import RunDirectory
    from dslm.worker.arguments import training_arguments
    from dslm.worker.layout.ranks import Layout
    from dslm.worker.layout.share import share_model
    from dslm.worker.model import build_model
    from dslm.worker.trace.model import AUTO_CLASSES

    recipe, config = job.recipe, job.config.values
    arguments = training_arguments(
        recipe, config, RunDirectory(Path("unused")), steps=10, on_cpu=True, liger=False
    )
    model = build_model(recipe, AUTO_CLASSES[recipe.task], None)
    layout = Layout.of(config, rank=dist.get_rank(), world_size=dist.get_world_size())
    share_model(model, recipe, layout, config["train_micro_batch_size_per_gpu"])
    if recipe.model.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # where DeepSpeed has no such optimizer, the Trainer makes it
    own = {"optimizer": _of_trainer(arguments, model)} if "optimizer" not in config else {}
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=None if own else trained, config=config, **own
    )
    return engine, arguments


def _of_trainer(arguments: Any, model: Any) -> Any:
    from transformers import Trainer

    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if (name in decaying) is decays], "weight_decay": decay}
        for decays, decay in ((True, arguments.weight_decay), (False, 0.0))
    ]
    return kind([group for group in groups if group["params"]], **settings)


def _batch(job: Job, model: Any, configuration: dict[str, Any]) -> dict[str, Any]:
    """A batch as the task makes it; of texts, two documents in a sample: none sees the other.

    One where the configuration says so: attention that keeps its probabilities is planned for that.
    """
    import torch

    from dslm.worker.trace.model import NEXT_TOKEN, Traced, batch

    micro = configuration["micro"]
    attention = str(getattr(model.config, "_attn_implementation", "") or "eager")
    made = batch(Traced(model, model.config, job.recipe.task, attention), micro, LENGTH)
    if "pixel_values" in made:
        made["pixel_values"].normal_()  # what isn't a number has no gradient, and no step is made
    if job.recipe.task in NEXT_TOKEN:
        made["input_ids"] = torch.randint(1, 2048, (micro, LENGTH))
        made["labels"] = made["input_ids"].clone()
        if "position_ids" in made:
            documents = configuration.get("documents", 2)
            one = torch.arange(LENGTH // documents)
            made["position_ids"] = torch.cat([one] * documents).repeat(micro, 1)
    return made


def _loss(job: Job, engine: Any, batch: dict[str, Any]) -> Any:
    from dslm.worker.tasks.base import cross_entropy
    from dslm.worker.trace.model import NEXT_TOKEN

    if job.recipe.task in NEXT_TOKEN:
        return engine(**batch).loss
    labels = batch.pop("labels")
    return cross_entropy(engine(**batch), labels)


def worker(meeting: str, source: Path, target: Path) -> None:
    """Measure every configuration of a file, on two ranks that meet at a file; rank 0 writes."""
    import deepspeed
    import torch.distributed as dist

    from dslm.worker.ranks import release_shared_memory

    dist.init_process_group("gloo", meeting, rank=int(os.environ["RANK"]), world_size=2)
    deepspeed.init_distributed("gloo")
    dist.barrier()
    release_shared_memory(dist.get_rank())
    rows = []
    for configuration in json.loads(source.read_text()):
        rows.append({**configuration, "measured": measure(configuration)})
        if dist.get_rank() == 0:
            target.write_text(json.dumps(rows))
    dist.barrier()


def run(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure configurations in two ranks; those that they got done."""
    for configuration in found:
        planned(configuration)  # once here, not in each rank: models are traced
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.json", Path(name) / "out.json"
        source.write_text(json.dumps(found))
        said = _ranks(Path(name), str(source), str(target))
        rows: list[dict[str, Any]] = json.loads(target.read_text()) if target.is_file() else []
        if len(rows) < len(found):
            sys.stderr.write(said[-8000:])
        return rows


def _ranks(folder: Path, *arguments: str) -> str:
    """Run two ranks of this module to their end, which the failure of one is; what they print."""
    # accelerate insists on an address; DeepSpeed names its shared memory by it
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    place |= {**operators(), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **place}
    meeting = (folder / "meeting").as_uri()
    argv = [sys.executable, "-P", "-m", "benchmarks.planner_memory", meeting, *arguments]
    with (folder / "log").open("w+") as log:
        ranks = [
            subprocess.Popen(
                argv, stdout=log, stderr=log,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            while any(rank.poll() is None for rank in ranks) and not any(r.poll() for r in ranks):
                time.sleep(0.1)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        log.seek(0)
        return log.read()


def measured(
    file: Path,
    wanted: list[dict[str, Any]] | None = None,
    *,
    minutes: float = 9.0,
    at_a_time: int = 4,
) -> list[dict[str, Any]]:
    """Measure what a file doesn't have yet, some at a time, for so long; all rows that it has."""
    began = time.monotonic()
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    done = [{key: value for key, value in row.items() if key != "measured"} for row in rows]
    left = [each for each in wanted or configurations() if each not in done]
    while left and time.monotonic() - began < 60 * minutes:
        part, left = left[:at_a_time], left[at_a_time:]
        rows += run(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
    return rows


def errors(rows: list[dict[str, Any]]) -> Iterator[float]:
    """Error of the planned peak of each row, relative to the measured one."""
    for row in rows:
        measured = max(row["measured"].values())
        yield max(planned(row).values()) / measured - 1


def within_bounds(found: list[float]) -> bool:
    """Whether absolute errors are 1 % on average and 4 % at worst, or less."""
    return mean(found) <= MEAN_ERROR and max(found) <= WORST_ERROR


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, people's units."""
    lines = [
        "| model | trained | ZeRO | offload | recomputes | micro batch | precision | settings "
        "| measured | plan | off |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, error in zip(rows, errors(rows), strict=True):
        again = "yes" if row["activation_checkpointing"] else "no"
        times = row.get("accumulation", 1)
        micro = f"{row['micro']} × {times}" if times > 1 else str(row["micro"])
        lines.append(
            f"| {row['architecture']} | {trained(row.get('lora', 0))} | {row['zero_stage']} "
            f"| {row['offload']} | {again} | {micro} | {row['precision']} "
            f"| {_settings(row)} "
            f"| {max(row['measured'].values()) / 2**20:.1f} MiB "
            f"| {max(planned(row).values()) / 2**20:.1f} MiB | {error:+.1%} |"
        )
    found = [abs(error) for error in errors(rows)]
    lines.append(
        f"\n{len(rows)} configurations: off by {mean(found):.2%} on average, by {max(found):.2%} "
        "at worst."
    )
    return "\n".join(lines) + "\n"


def _settings(row: dict[str, Any]) -> str:
    """The last parts of a row's keys, with their values."""
    short = (setting.rpartition("=") for setting in row.get("settings", ()))
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, _, value in short)


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
