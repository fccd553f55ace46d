"""The planner's time model against runs that others have published, each with its source.

`published.csv` has a row a run, transcribed from public tables. Every other row of one source is
marked as fitted: `python -m benchmarks.planner_published` fits the five constants of the time model
on those and prints them. What is shown of the others says how close a prediction from a device
table comes. What is published is from other frameworks (FSDP, not DeepSpeed) and kernels.
"""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from dslm.ask.profile import profile_request, profiles
from dslm.cluster.devices import Device, device_named
from dslm.plan import time
from dslm.plan.report import cluster_of
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile
from dslm.recipe.load import load_recipe

ROWS = Path(__file__).parent / "published.csv"
SOURCES = {
    "foundry": "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md",
    "titan-h100": "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md",
    "titan-a100": "https://github.com/pytorch/torchtitan/blob/041336434916/docs/performance.md",
    "fms": "https://github.com/foundation-model-stack/fms-fsdp/blob/0d319983c4b3/README.md",
    "fms-h100": "https://github.com/foundation-model-stack/fms-fsdp",
}
REMARKS = {
    "foundry": "FSDP, flash attention; A100 with 1600 Gb/s and H100 with 3200 Gb/s a host",
    "titan-h100": "FSDP2; H100s with 2.4 TB/s and limited to 500 W; a part of the activations is "
    "recomputed, which the plan doesn't model",
    "titan-a100": "FSDP2",
    "fms": "FSDP (HSDP where no activations are recomputed: planned as stage 2), 400 Gb/s a host",
    "fms-h100": "the same, 800 Gb/s a host",
}
# width, layers, heads: llm-foundry, scripts/train/yamls/pretrain
_MPT = {
    "125m": (768, 12, 12), "350m": (1024, 24, 16), "760m": (1536, 24, 12), "1b": (2048, 24, 16),
    "3b": (2560, 32, 20), "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 48, 56),
    "70b": (8192, 80, 64),
}  # fmt: skip
# width, inner width, layers, heads, key and value heads, vocabulary: the models' config.json
_LLAMA = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000), "llama-2-13b": (5120, 13824, 40, 40, 40, 32000),
    "llama-2-34b": (8192, 22016, 48, 64, 8, 32000), "llama-2-70b": (8192, 28672, 80, 64, 8, 32000),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256), "llama-3-70b": (8192, 28672, 80, 64, 8, 128256),
}  # fmt: skip
_LONGEST = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A run: what was trained on what, and how many tokens a second each device got through."""

    source: str
    model: str
    device: str
    devices: int
    length: int
    micro: int
    accumulation: int
    recomputes: bool
    stage: int
    tokens: float  # a second, of each device
    fitted: bool
    network: float | None  # GB/s of each device, where it isn't the table's


def _read() -> tuple[Published, ...]:
    with ROWS.open(encoding="utf-8", newline="") as stream:
        return tuple(
            Published(
                source=row["source"],
                model=row["model"],
                device=row["device"],
                devices=int(row["devices"]),
                length=int(row["length"]),
                micro=int(row["micro"]),
                accumulation=int(row["accumulation"]),
                recomputes=row["recomputes"] == "1",
                stage=int(row["stage"]),
                tokens=float(row["tokens"]),
                fitted=row["fitted"] == "1",
                network=float(row["network"]) if row["network"] else None,
            )
            for row in csv.DictReader(stream)
        )


RUNS = _read()


def _architecture(model: str) -> dict[str, Any]:
    name = model.partition(" ")[0]
    if name in _LLAMA:
        width, inner, layers, heads, kv_heads, vocabulary = _LLAMA[name]
        return {
            "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "max_position_embeddings": 8192,
        }  # fmt: skip
    width, layers, heads = _MPT[name.removeprefix("mpt-")]
    # MPT is a GPT without dropout, with the plain GELU; it learns as many positions as it needs
    return {
        "model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads,
        "n_positions": _LONGEST, "vocab_size": 50368, "activation_function": "gelu",
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip


_TRACED: dict[str, Profile] = {}


def _trace(models: Iterable[str]) -> None:
    """Trace what isn't traced yet, all by one process."""
    names = sorted(set(models) - set(_TRACED))
    flash = ["model.attention=flash_attention_2"]
    recipe = load_recipe("llama-3.1-8b", flash).recipe
    requests = [profile_request(recipe, _architecture(name), on_cpu=False) for name in names]
    _TRACED.update(zip(names, profiles(requests, lambda detail: None), strict=True))


@functools.cache
def _profile(model: str, length: int) -> Profile:
    """The profile of a run's model, with as many positions as its sequences are long."""
    _trace([model])
    found = _TRACED[model]
    groups = tuple(
        replace(group, shape=(length, group.shape[1])) if group.shape[0] == _LONGEST else group
        for group in found.parameters
    )
    return replace(found, parameters=groups)


def predicted(run: Published, device: Device | None = None) -> time.StepTime:
    """Predict a run's step."""
    base = load_recipe("llama-3.1-8b").recipe
    recipe = base.model_copy(
        update={"data": base.data.model_copy(update={"sequence_length": run.length})}
    )
    device = device or device_named(run.device)
    if run.network is not None:
        device = replace(device, network_bandwidth=run.network * 1e9)
    strategy = Strategy(
        zero_stage=run.stage,
        offload="none",
        micro_batch_size=run.micro,
        gradient_accumulation_steps=run.accumulation,
        activation_checkpointing=run.recomputes,
        tensor_parallel=1,
        sequence_parallel=1,
        data_parallel_size=run.devices,
    )
    cluster = cluster_of(device, run.devices)
    found = time.predict(recipe, _profile(run.model, run.length), strategy, cluster)
    if found is None:
        raise LookupError(f"the speed of {run.device} is not in the table")
    return found


def error(run: Published, device: Device | None = None) -> float:
    """By how much the predicted speed is off, relative to what was published."""
    return predicted(run, device).tokens_per_second / run.devices / run.tokens - 1


def errors(runs: Iterable[Published] = RUNS) -> list[float]:
    """How far each prediction is off, relative to what was published."""
    wanted = list(runs)
    _trace(run.model for run in wanted)
    return [error(run) for run in wanted]


def held_out() -> dict[str, list[float]]:
    """Errors of runs that nothing was fitted on, by source."""
    _trace(run.model for run in RUNS)
    found: dict[str, list[float]] = {}
    for run in RUNS:
        if not run.fitted:
            found.setdefault(run.source, []).append(error(run))
    return found


def table() -> str:
    """A summary by source, and the runs that weren't fitted, in Markdown."""
    lines = ["| source | runs | mean | median | worst | bias |", "|---|---|---|---|---|---|"]
    fitted = errors(run for run in RUNS if run.fitted)
    groups = {"foundry, fitted": fitted, **held_out()}
    everything = [off for name, offs in groups.items() if name != "foundry, fitted" for off in offs]
    for name, offs in {**groups, "all that are not fitted": everything}.items():
        sizes = [abs(off) for off in offs]
        lines.append(
            f"| {name} | {len(offs)} | {mean(sizes):.1%} | {median(sizes):.1%} "
            f"| {max(sizes):.0%} | {mean(offs):+.1%} |"
        )
    lines += ["", *(f"- {name}: <{SOURCES[name]}>; {REMARKS[name]}" for name in SOURCES), ""]
    lines += [
        "| model | devices | sequence | micro batch | recomputes | stage "
        "| published tokens/s/device | predicted | off | source |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in RUNS:
        if run.fitted:
            continue
        tokens = predicted(run).tokens_per_second / run.devices
        lines.append(
            f"| {run.model} | {run.devices} × {run.device} | {run.length} "
            f"| {run.micro} × {run.accumulation} | {'yes' if run.recomputes else 'no'} "
            f"| {run.stage} | {run.tokens:.0f} | {tokens:.0f} | {tokens / run.tokens - 1:+.0%} "
            f"| {run.source} |"
        )
    return "\n".join(lines) + "\n"


_CONSTANTS = ("products, A100", "attention, A100", "products, H100", "attention, H100", "exposed")


def fit() -> dict[str, float]:
    """Fit the five constants on the rows that are marked."""
    import math

    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    runs = [run for run in RUNS if run.fitted]

    def residuals(values: Any) -> list[float]:
        ampere, scores_a, hopper, scores_h, time.EXPOSED = (float(value) for value in values)
        found = []
        for run in runs:
            products, attention = (
                (hopper, scores_h) if run.device.startswith("h100") else (ampere, scores_a)
            )
            device = replace(device_named(run.device), products=products, attention=attention)
            found.append(math.log1p(error(run, device)))
        return found

    start = [0.75, 0.6, 0.6, 0.4, 0.5]
    solved = least_squares(residuals, start, loss="soft_l1", f_scale=0.05, bounds=(0.01, 1.0))
    return dict(zip(_CONSTANTS, (round(float(x), 3) for x in solved.x), strict=True))


if __name__ == "__main__":
    print(fit())
    sys.stdout.write(table())
