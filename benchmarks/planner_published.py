"""The planner's time model against runs that others have published, each with its source.

What is published comes from other frameworks (FSDP, not DeepSpeed) and kernels; it says how close
a prediction from a device table can come, not that it is right for a run of dslm.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from statistics import mean
from typing import Any

from dslm.ask.profile import profile_request, profiles
from dslm.cluster.devices import device_named
from dslm.plan.report import cluster_of
from dslm.plan.strategy import Strategy
from dslm.plan.time import predict
from dslm.profile.value import Profile
from dslm.recipe.load import load_recipe

_FOUNDRY = "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md"
_TITAN = (
    "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md"
)
_TITAN_A100 = "https://github.com/pytorch/torchtitan/blob/main/docs/performance.md (2024-07)"


def _mpt(width: int, layers: int, heads: int, length: int) -> dict[str, Any]:
    """MPT's sizes: a GPT with learned positions (llm-foundry scripts/train/yamls/pretrain)."""
    return {
        "model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads,
        "n_positions": length, "vocab_size": 50368,
    }  # fmt: skip


_LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A run: what was trained on what, and how many tokens a second each device got through."""

    model: str
    architecture: dict[str, Any]
    device: str
    devices: int
    length: int
    micro: int
    accumulation: int
    recomputes: bool
    tokens_per_second: float  # of each device
    source: str


def _foundry(
    model: str, sizes: tuple[int, int, int], device: str, devices: int, length: int, micro: int,
    accumulation: int, tokens: float, *, recomputes: bool,
) -> Published:  # fmt: skip
    return Published(
        model=f"MPT {model}",
        architecture=_mpt(*sizes, length),
        device=device,
        devices=devices,
        length=length,
        micro=micro,
        accumulation=accumulation,
        recomputes=recomputes,
        tokens_per_second=tokens,
        source=_FOUNDRY,
    )


_3B, _7B = (2560, 32, 20), (4096, 32, 32)
_13B, _30B, _70B = (5120, 40, 40), (7168, 48, 56), (8192, 80, 64)
RUNS = (
    _foundry("3B", _3B, "h100-80gb", 8, 4096, 5, 6, 20964, recomputes=False),
    _foundry("7B", _7B, "h100-80gb", 8, 2048, 6, 1, 10643, recomputes=False),
    _foundry("7B", _7B, "h100-80gb", 8, 8192, 8, 2, 6935, recomputes=True),
    _foundry("13B", _13B, "h100-80gb", 64, 2048, 2, 1, 4800, recomputes=False),
    _foundry("30B", _30B, "h100-80gb", 32, 2048, 14, 3, 2308, recomputes=True),
    _foundry("70B", _70B, "h100-80gb", 64, 2048, 8, 4, 1039, recomputes=True),
    _foundry("7B", _7B, "a100-80gb", 8, 4096, 16, 2, 3684, recomputes=True),
    _foundry("13B", _13B, "a100-80gb", 8, 2048, 2, 3, 2262, recomputes=False),
    _foundry("30B", _30B, "a100-80gb", 8, 2048, 3, 21, 916, recomputes=True),
    _foundry("70B", _70B, "a100-80gb", 64, 2048, 8, 4, 410, recomputes=True),
    Published(
        model="Llama 3.1 8B, FSDP + torch.compile", architecture=_LLAMA_8B, device="h100-80gb",
        devices=8, length=8192, micro=2, accumulation=1, recomputes=False,
        tokens_per_second=6667, source=_TITAN,
    ),
    Published(
        model="Llama 3.1 8B, FSDP", architecture=_LLAMA_8B, device="h100-80gb",
        devices=128, length=8192, micro=2, accumulation=1, recomputes=False,
        tokens_per_second=5605, source=_TITAN,
    ),
    Published(
        model="Llama 3 8B, FSDP", architecture=_LLAMA_8B, device="a100-80gb",
        devices=64, length=8192, micro=1, accumulation=1, recomputes=False,
        tokens_per_second=2904, source=_TITAN_A100,
    ),
)  # fmt: skip


def predicted(run: Published) -> tuple[float, float]:
    """Tokens a second of each device, and MFU, as the planner predicts them at stage 3."""
    base = load_recipe("llama-3.1-8b").recipe
    recipe = base.model_copy(
        update={"data": base.data.model_copy(update={"sequence_length": run.length})}
    )
    cluster = cluster_of(device_named(run.device), run.devices)
    strategy = Strategy(
        zero_stage=3,
        offload="none",
        micro_batch_size=run.micro,
        gradient_accumulation_steps=run.accumulation,
        activation_checkpointing=run.recomputes,
        tensor_parallel=1,
        sequence_parallel=1,
        data_parallel_size=run.devices,
    )
    found = predict(recipe, traced()[RUNS.index(run)], strategy, cluster)
    if found is None:
        raise LookupError(f"the speed of {run.device} is not in the table")
    return found.tokens_per_second / run.devices, found.mfu


@functools.cache
def traced() -> list[Profile]:
    """The profile of each run's architecture."""
    recipe = load_recipe("llama-3.1-8b").recipe
    requests = [profile_request(recipe, run.architecture, on_cpu=False) for run in RUNS]
    return profiles(requests, lambda detail: None)


def errors() -> list[float]:
    """How far each prediction is off, relative to what was published."""
    return [predicted(run)[0] / run.tokens_per_second - 1 for run in RUNS]


def table() -> str:
    """The runs in Markdown."""
    lines = [
        "| model | devices | sequence | micro batch | recomputes | published tokens/s/device "
        "| predicted | off | MFU predicted | source |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = {source: f"[{n}]" for n, source in enumerate(dict.fromkeys(r.source for r in RUNS), 1)}
    for run, off in zip(RUNS, errors(), strict=True):
        tokens, mfu = predicted(run)
        lines.append(
            f"| {run.model} | {run.devices} × {run.device} | {run.length} "
            f"| {run.micro} × {run.accumulation} | {'yes' if run.recomputes else 'no'} "
            f"| {run.tokens_per_second:.0f} | {tokens:.0f} | {off:+.0%} | {mfu:.0%} "
            f"| {names[run.source]} |"
        )
    found = [abs(off) for off in errors()]
    lines.append(
        f"\n{len(RUNS)} runs: off by {mean(found):.0%} on average, by {max(found):.0%} at worst.\n"
    )
    lines += [f"{name} <{source.split()[0]}>" for source, name in names.items()]
    return "\n".join(lines) + "\n"
