"""The planner's activations against transformers itself, for models too large to be here.

One forward and one backward pass of a preset under FakeTensorMode: every operation runs on shapes
alone, and the storages that would live are counted. What the optimizer and DeepSpeed keep is not
part of it. Attention sees an explicit mask, as with packed samples.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from dslm.ask.profile import profile_of
from dslm.profile.levels import levels
from dslm.profile.value import Profile
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe

# preset, sequences; every one of 1B to 8B that is in the catalogue, and the mixtures of experts
MODELS = (
    ("llama-3.2-1b", 4), ("llama-3.2-3b", 2), ("llama-3.1-8b", 1), ("gpt2-1.5b", 2),
    ("pythia-1.4b", 4), ("smollm2-1.7b", 4), ("qwen3-1.7b", 2), ("qwen3-4b", 1), ("qwen3-8b", 1),
    ("gemma-3-1b", 2), ("gemma-3-4b", 1), ("mistral-7b", 1), ("olmo2-7b", 1),
    ("mixtral-8x7b", 1), ("qwen3-30b-a3b", 1),
)  # fmt: skip
LORA_MODELS = (
    ("llama-3.2-1b", 4), ("qwen3-1.7b", 2), ("gemma-3-1b", 2), ("gpt2-1.5b", 2), ("pythia-1.4b", 4),
    ("olmo2-7b", 1),
)  # fmt: skip
LORA_RANK = 16
LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass."""

    sequences: int
    length: int
    checkpointing: bool


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes measured and predicted: after forward, and the peaks of forward and backward."""

    name: str
    sequences: int
    length: int
    checkpointing: bool
    lora_rank: int
    measured: dict[str, int]
    predicted: dict[str, int]

    @property
    def off(self) -> dict[str, float]:
        """Relative errors."""
        return {name: self.predicted[name] / self.measured[name] - 1 for name in self.measured}


def compare(
    name: str, sequences: int, *, checkpointing: bool, lora_rank: int = 0, length: int = LENGTH
) -> Row:
    """Measure a preset and predict it."""
    settings = [
        f"model.activation_checkpointing={json.dumps(checkpointing)}", "model.attention=sdpa",
    ]  # fmt: skip
    if lora_rank:
        settings.append(f"lora.rank={lora_rank}")
    recipe = load_recipe(name, settings).recipe
    architecture = dict(recipe.model.architecture)
    if architecture["model_type"] == "gpt2":
        # on a CPU dropout in attention takes another way than on an accelerator
        architecture |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    profile, why = profile_of(recipe, architecture, on_cpu=False)
    if profile is None or why:
        raise LookupError(f"{name} can't be traced: {why}")
    length = min(length, profile.max_positions or length)
    one = Pass(sequences=sequences, length=length, checkpointing=checkpointing)
    return Row(
        name=name,
        sequences=sequences,
        length=length,
        checkpointing=checkpointing,
        lora_rank=lora_rank,
        measured=measure(recipe, architecture, one),
        predicted=predict(profile, one),
    )


def predict(profile: Profile, one: Pass) -> dict[str, int]:
    """What the planner says of a pass with one rank, gradients included."""
    mode = "recompute" if one.checkpointing else "plain"
    found = levels(profile.pass_of(mode, one.sequences), one.sequences, one.length)
    return {
        "kept": int(found.kept),
        "forward": int(found.forward),
        "backward": int(max(level.kept for level in found.backward)),
    }


def measure(recipe: Recipe, architecture: dict[str, Any], one: Pass) -> dict[str, int]:
    """Bytes alive after a forward pass, and the peaks of forward and backward."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.live import Live
    from dslm.worker.adapters import with_lora

    sizes = {key: value for key, value in architecture.items() if key != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **sizes)
    config.dtype = torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
            model.train()
            model.config.use_cache = False
            if one.checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model = with_lora(model, recipe)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            model.tie_weights()
            live = Live()
            live.leave_out([*model.parameters(), *model.buffers()])
            found = {}
            with live:
                ids = torch.randint(1, 100, (one.sequences, one.length))
                positions = torch.arange(one.length).repeat(one.sequences, 1)
                loss = model(input_ids=ids, position_ids=positions, labels=ids.clone()).loss
                gc.collect()
                found["kept"], found["forward"] = live.now, live.peak
                live.start_phase()
                loss.backward()
                found["backward"] = live.peak
    finally:
        torch.set_default_dtype(before)
    return found


def measured(file: Path, *, minutes: float = math.inf) -> list[Row]:
    """Every model, with and without recomputation, and one of each family with adapters.

    What a file has isn't repeated; after so many minutes none is begun.
    """
    began = time.monotonic()
    rows = [Row(**each) for each in json.loads(file.read_text())] if file.is_file() else []
    done = {(row.name, row.checkpointing, row.lora_rank) for row in rows}
    for models, rank in ((MODELS, 0), (LORA_MODELS, LORA_RANK)):
        for (name, sequences), again in itertools.product(models, (False, True)):
            if (name, again, rank) in done or time.monotonic() - began > 60 * minutes:
                continue
            rows.append(compare(name, sequences, checkpointing=again, lora_rank=rank))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([asdict(row) for row in rows]))
    return rows


def errors(found: list[Row]) -> list[float]:
    """The absolute errors of every number of every row."""
    return [abs(off) for row in found for off in row.off.values()]


def trained(lora_rank: int) -> str:
    """What is trained of a model, for people."""
    return f"LoRA {lora_rank}" if lora_rank else "all"


def table(found: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | trained | micro batch | recomputes | kept by autograd | off | forward | off "
        "| backward | off |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = " | ".join(
            f"{row.measured[name] / 2**30:.2f} GiB | {row.off[name]:+.2%}" for name in row.measured
        )
        lines.append(
            f"| {row.name} | {trained(row.lora_rank)} | {row.sequences} × {row.length} "
            f"| {'yes' if row.checkpointing else 'no'} | {cells} |"
        )
    off = errors(found)
    lines.append(
        f"\n{len(found)} passes, {len(off)} numbers: off by {mean(off):.2%} on average, by "
        f"{max(off):.2%} at worst."
    )
    return "\n".join(lines) + "\n"
