"""Predicted and measured seconds of a step of small models on this machine.

Before: `dslm doctor --measure`. Each row is a real training of a few steps by `dslm train`'s own
code, as `dslm tune` makes them; the middle of its steps stands beside what the plan of the same
recipe said. `python -m benchmarks.planner_steps FILE [RANKS]` measures what the file doesn't have
yet, on a machine that does nothing else.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

MEAN_ERROR, WORST_ERROR = 0.15, 0.30
STEPS, WARM_UP = 10, 2
_LLAMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024}
_VOCABULARY = 4096  # of the tokenizer that quickstart trains
# name: architecture, sequence length, micro batch, precision
MODELS: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "llama, 128 wide": ({"model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
                         "num_hidden_layers": 4, **_LLAMA}, 128, 4, "fp32"),
    "llama, 512 wide": ({"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
                         "num_hidden_layers": 4, **_LLAMA}, 128, 4, "fp32"),
    "qwen3, 256 wide": ({"model_type": "qwen3", "hidden_size": 256, "intermediate_size": 768,
                         "num_hidden_layers": 6, "head_dim": 32, **_LLAMA}, 256, 2, "fp32"),
    "gpt2, 256 wide": ({"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 8,
                        "n_positions": 1024}, 256, 1, "fp32"),
    "gpt2, 512 wide": ({"model_type": "gpt2", "n_embd": 512, "n_layer": 6, "n_head": 8,
                        "n_positions": 1024, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                        "attn_pdrop": 0.0}, 256, 2, "fp32"),
    "gpt_neox, 384 wide": ({"model_type": "gpt_neox", "hidden_size": 384, "num_hidden_layers": 6,
                            "num_attention_heads": 6, "intermediate_size": 1536,
                            "max_position_embeddings": 1024}, 128, 8, "fp32"),
    "opt, 256 wide": ({"model_type": "opt", "hidden_size": 256, "word_embed_proj_dim": 256,
                       "ffn_dim": 1024, "num_hidden_layers": 6, "num_attention_heads": 8,
                       "max_position_embeddings": 1024, "dropout": 0.0}, 128, 2, "fp32"),
    "phi3, 384 wide": ({"model_type": "phi3", "hidden_size": 384, "intermediate_size": 1024,
                        "num_hidden_layers": 4, "pad_token_id": 0, **_LLAMA}, 256, 4, "bf16"),
    "olmo2, 256 wide": ({"model_type": "olmo2", "hidden_size": 256, "intermediate_size": 1024,
                         "num_hidden_layers": 4, **_LLAMA}, 128, 8, "fp32"),
    "granite, 256 wide": ({"model_type": "granite", "hidden_size": 256, "intermediate_size": 1024,
                           "num_hidden_layers": 4, **_LLAMA}, 128, 4, "fp32"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A training: seconds of a step."""

    name: str
    ranks: int
    micro: int
    length: int
    precision: str
    measured: float
    predicted: float

    @property
    def off(self) -> float:
        """Relative error."""
        return self.predicted / self.measured - 1


def settings(name: str, ranks: int) -> list[str]:
    """The recipe, as changes of the quickstart."""
    architecture, length, micro, precision = MODELS[name]
    architecture = {**architecture, "vocab_size": _VOCABULARY}
    return [
        f"model.architecture={json.dumps(architecture)}",
        f"data.sequence_length={length}",
        "data.max_documents=200",
        f"batch.micro_size={micro}",
        f"batch.global_size={micro * ranks}",
        f"parallel.zero_stage={1 if ranks > 1 else 0}",
        "parallel.offload=none",
        "model.activation_checkpointing=false",
        f"precision={precision}",
    ]


def measure(name: str, ranks: int) -> Row:
    """Train for a few steps."""
    from dslm.decide.job import resolve_job
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.placement import Placement
    from dslm.lifecycle.request import TrainingRequest
    from dslm.lifecycle.trial import PROBING, run_trial
    from dslm.recipe.load import load_recipe

    loaded = load_recipe("quickstart", [*settings(name, ranks), *PROBING])
    fleet = fleet_of(Placement(num_gpus=ranks))
    planned = resolve_job(loaded, fleet.cluster).plan.choice.time
    if planned is None:
        raise LookupError("this machine's speed isn't known: `dslm doctor --measure`")
    with tempfile.TemporaryDirectory() as folder:
        tried = run_trial(
            TrainingRequest(recipe=loaded, fleet=fleet), loaded, Path(folder) / "run",
            steps=WARM_UP + STEPS, give_up=lambda steps: False, tell=lambda detail: None,
        )  # fmt: skip
    seconds = [s.step_seconds for s in tried.steps if s.step > WARM_UP and s.step_seconds]
    if not seconds:
        raise LookupError(f"{name}: {tried.why}")
    _, length, micro, precision = MODELS[name]
    return Row(name, ranks, micro, length, precision, median(seconds), planned.step_seconds)


def measured(file: Path, *, ranks: tuple[int, ...] = (1, 2), minutes: float = 4.5) -> list[Row]:
    """Measure what a file doesn't have yet, for so long; all rows that it has."""
    began = time.monotonic()
    rows = [Row(**each) for each in json.loads(file.read_text())] if file.is_file() else []
    done = {(row.name, row.ranks) for row in rows}
    for count in ranks:
        for name in MODELS:
            if (name, count) in done or time.monotonic() - began > 60 * minutes:
                continue
            try:
                row = measure(name, count)
            except LookupError as failure:
                print(f"{name} × {count}: {failure}", file=sys.stderr, flush=True)
                continue
            print(f"{name} × {count}: {row.measured:.4f} s, {row.off:+.0%}", flush=True)
            rows.append(row)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([asdict(each) for each in rows]))
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | ranks | micro batch | precision | measured | predicted | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.ranks} | {row.micro} × {row.length} | {row.precision} "
            f"| {row.measured:.3f} s | {row.predicted:.3f} s | {row.off:+.0%} |"
        )
    off = [abs(row.off) for row in rows]
    lines.append(
        f"\n{len(rows)} trainings: off by {mean(off):.0%} on average, by {max(off):.0%} at worst."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    chosen = tuple(int(text) for text in sys.argv[2:]) or (1, 2)
    print(table(measured(Path(sys.argv[1]), ranks=chosen)))
