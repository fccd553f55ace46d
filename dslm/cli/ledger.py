"""Screens of `dslm plan`: every term of memory, and how far a recipe can go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from dslm.cli import terminal

if TYPE_CHECKING:
    from rich.table import Table

    from dslm.cluster.hosts import Cluster
    from dslm.decide.job import Job

Document = dict[str, Any]
_HOW = ("zero_stage", "offload", "micro_batch_size", "activation_checkpointing")
_SHARED = ("tensor_parallel", "sequence_parallel", "expert_parallel")
_ALL_THROUGH = 10  # moments of a run, all but the first


def show_limits(made: Job, cluster: Cluster, *, longest: bool, largest: bool, json: bool) -> None:
    """The longest sequence, the largest micro batch that fit."""
    from dslm.decide.longest import reach_document
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
    reach: Document = {}
    if longest and made.profile is not None:
        with terminal.busy_when_told() as told:
            reach = reach_document(made, told)
        found["long_samples"] = reach
    if json:
        terminal.write_json(found)
        return
    for name in (each for each in asked if each in found):
        limit = found[name]
        if limit is None:
            terminal.show(f"[bold]{name.replace('_', ' ')}[/]  none: not even the smallest fits")
            continue
        how = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in limit.items() if k != "value")
        terminal.show(f"[bold]{name.replace('_', ' ')}[/]  {limit['value']}  ({how})")

    if reach:
        terminal.show(_reach_table(reach))


def _reach_table(found: Document) -> Table:
    """How long sequences may be with what saves memory with them, without it, and without each."""
    from rich.table import Table

    def tokens(count: int | None) -> str:
        if count is None:
            return "none fits"
        return f"{count:,}" + (", all its positions" if count == found["positions"] else "")

    table = Table("long samples", "longest sequence", box=None, header_style="bold")
    table.add_row("with nothing that saves memory with them", tokens(found["with_nothing"]))
    table.add_row("with all of it (`model.long_context`)", tokens(found["with_all"]))
    for key, count in found["without"].items():
        table.add_row(f"  without {key}", tokens(count))
    for key, why in found["left_out"].items():
        table.add_row(f"  [dim]{key}", f"[dim]left out: {escape(why)}")
    return table


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
