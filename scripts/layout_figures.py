"""The plan's own figures for layouts of 8 and 70 billion parameters, as docs/layouts.md has them.

    python -m scripts.layout_figures

prints the rows; tests/docs/test_layouts_page.py holds the page to them.
"""

from __future__ import annotations

from collections.abc import Iterator

from dslm.cluster.devices import device_named
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.ready import ready_job
from dslm.plan.report import cluster_of
from dslm.recipe.load import load_recipe
from dslm.units import render_bytes

HEAD = ("model", "GPUs", "tokens a sample", "layout", "memory of a GPU", "tokens/s", "fits")
_ZERO = ["parallel.zero_stage=3"]
# preset, GPUs, tokens of a sample, layout, overrides
ROWS = tuple(
    (preset, gpus, length, name, overrides)
    for preset, gpus in (("llama-3.1-8b", 8), ("llama-3.1-70b", 64))
    for length, name, overrides in (
        (4096, "ZeRO 1", ["parallel.zero_stage=1"]),
        (4096, "ZeRO 3", _ZERO),
        (4096, "ZeRO 3, optimizer offloaded", [*_ZERO, "parallel.offload=optimizer"]),
        (4096, "AutoTP 8, ZeRO 1", ["parallel.zero_stage=1", "parallel.tensor=8"]),
        (65536, "ZeRO 3", _ZERO),
        (65536, "Ulysses 8, ZeRO 3", [*_ZERO, "parallel.sequence=8"]),
    )
)


def rows() -> Iterator[tuple[str, ...]]:
    """Plan each of them on H100s, eight a host."""
    for preset, gpus, length, name, overrides in ROWS:
        given = [
            *overrides, f"data.sequence_length={length}", "batch.global_size=64",
            "batch.micro_size=1", "model.activation_checkpointing=true", "data.train=stdlib",
        ]  # fmt: skip
        asking = Asking(verb=Verb.PLAN, here=False, force=True)
        job = ready_job(
            load_recipe(preset, given), cluster_of(device_named("h100-80gb"), gpus), asking
        )
        choice = job.plan.choice
        memory, time = choice.memory, choice.time
        yield (
            preset,
            str(gpus),
            f"{length:,}",
            name,
            render_bytes(memory.total) if memory else "?",
            f"{time.tokens_per_second:,.0f}" if time else "?",
            "yes" if choice.fits else "no",
        )


def table() -> str:
    """Return the rows as a table of a page."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
