"""Screens of `dslm plan`: every term of memory, and how far a recipe can go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dslm.cli import terminal

if TYPE_CHECKING:
    from dslm.cluster.hosts import Cluster
    from dslm.decide.job import Job

_HOW = ("zero_stage", "offload", "micro_batch_size", "activation_checkpointing")
_SHARED = ("tensor_parallel", "sequence_parallel", "expert_parallel")
_ALL_THROUGH = 10  # moments of a run, all but the first


def show_limits(made: Job, cluster: Cluster, *, longest: bool, largest: bool, json: bool) -> None:
    """The longest sequence, the largest micro batch that fit."""
    from dslm.plan import limits

    found: dict[str, Any] = {}
    asked = {"longest_sequence": longest, "largest_micro_batch": largest}
    finders = {"longest_sequence": limits.longest, "largest_micro_batch": limits.largest}
    for name, wanted in asked.items():
        if wanted and made.profile is not None:
            limit = finders[name](made.asked.recipe, cluster, made.profile, made.permits)
            found[name] = limit and {
                "value": limit[0],
                **{key: getattr(limit[1].strategy, key) for key in _HOW},
                **{key: n for key in _SHARED if (n := getattr(limit[1].strategy, key)) > 1},
            }  # fmt: skip
    if json:
        terminal.write_json(found)
        return
    for name, limit in found.items():
        if limit is None:
            terminal.show(f"[bold]{name.replace('_', ' ')}[/]  none: not even the smallest fits")
            continue
        how = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in limit.items() if k != "value")
        terminal.show(f"[bold]{name.replace('_', ' ')}[/]  {limit['value']}  ({how})")


def show_terms(memory: dict[str, Any]) -> None:
    """Every term of the ledger; those of the peak are marked."""
    from rich.table import Table

    from dslm.units import render_bytes

    table = Table("term", "bytes", "", "place", "lives", "source", box=None, header_style="bold")
    moment = memory.get("peak_moment")
    for term in memory.get("terms", ()):
        lives = term["lives"]
        table.add_row(
            term["name"],
            f"{term['bytes']}",
            render_bytes(term["bytes"]) + (" [bold]*[/]" if moment in lives else ""),
            term["place"],
            ", ".join(lives) if len(lives) < _ALL_THROUGH else "all through",
            term["source"],
        )
    terminal.show(table)
    terminal.show(f"[dim]* at the peak: {moment}[/]")
