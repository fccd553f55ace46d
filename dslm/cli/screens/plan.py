"""The screen of a plan: the choice, the memory, the time; and the table of a sweep.

Documents of `dslm.plan.report` in, something for the terminal out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dslm.units import number_of, render_bytes, render_count, render_seconds

Document = dict[str, Any]  # as `dslm plan --json` prints it, or a part of it
_BAR = 32  # characters
_ITEMS = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "context")
_MOST_OTHERS = 3


def plan_page(found: Document) -> Iterator[RenderableType]:
    """Lay out the document of one plan."""
    yield _title(found)
    device = found["memory"]["device"]
    if device is not None:
        yield _facts([("choice", _choice(found["choice"]))])
        yield _memory(found["memory"], fits=found["fits"])
    else:
        reason = escape(found["model"]["untraced"])
        unknown = f"[bold yellow]unknown[/]: the model couldn't be traced: {reason}"
        yield _facts([("choice", _choice(found["choice"])), ("fits", unknown)])
    yield _facts(_rest(found))


def _rest(found: Document) -> Iterator[tuple[str, str]]:
    if found["memory"]["device"] is not None:
        yield "host", _host(found["memory"]["host"])
    if found["time"] is not None:
        yield "time", _time(found["time"])
    yield from _long_samples(found["long_samples"])
    label = "instead"
    for other in found["runners_up"][:_MOST_OTHERS]:
        yield label, f"[dim]{_other(other)}[/]"
        label = ""
    smallest = found["smallest_world_size"]
    if smallest:
        yield "needs", f"at least {number_of(smallest, 'such device')}"


def _long_samples(found: Document) -> Iterator[tuple[str, str]]:
    """Lay out what saves memory with long samples, and what of it doesn't go here."""
    if found["on"]:
        yield "long samples", escape("; ".join(found["on"].values()))
    for key, why in found["left_out"].items():
        yield "left out", f"[dim]{escape(key)}: {escape(why)}[/]"


def sweep_table(rows: list[Document]) -> Table:
    """Lay out plans for clusters of many sizes, a line each."""
    table = Table(box=None, header_style="bold")
    for name in ("gpus", "stage", "micro batch"):
        table.add_column(name, justify="right")
    table.add_column("recompute")
    table.add_column("memory", justify="right")
    table.add_column("fits")
    table.add_column("tokens/s", justify="right")
    for row in rows:
        table.add_row(
            str(row["gpus"]),
            str(row["zero_stage"]),
            str(row["micro_batch_size"]),
            "yes" if row["activation_checkpointing"] else "no",
            render_bytes(row["total"]),
            "[green]yes[/]" if row["fits"] else "[red]no[/]",
            render_count(row["tokens_per_second"]) if row["tokens_per_second"] else "-",
        )
    return table


def _facts(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> Table:
    """Names and their values; a long value is wrapped below its beginning."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, min_width=len("activations"))
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def _title(found: Document) -> Text:
    parameters, off = found["model"]["parameters"], found["model"]["off"]
    guess = f" (activations within {off:.1%})" if off and not found["model"]["exact"] else ""
    cluster = found["cluster"]
    return Text(
        f"{render_count(parameters) if parameters else '?'} parameters{guess} on "
        f"{cluster['world_size']} × {cluster['device']}, "
        f"{number_of(cluster['hosts'], 'host')}"
    )


def _choice(choice: Document) -> str:
    parts = [
        f"ZeRO stage {choice['zero_stage']}",
        f"micro batch {choice['micro_batch_size']}",
        f"gradient accumulation {choice['gradient_accumulation_steps']}",
        f"data-parallel size {choice['data_parallel_size']}",
    ]
    parts += [
        f"{name}-parallel size {choice[f'{name}_parallel']}"
        for name in ("tensor", "sequence", "expert")
        if choice[f"{name}_parallel"] > 1
    ]
    return ", ".join([*parts, *_savings(choice)])


def _savings(choice: Document) -> list[str]:
    """Name the savings of memory beside the stage."""
    offload = [f"{choice['offload']} offload"] if choice["offload"] != "none" else []
    second = ["second partition in each host"] * bool(choice.get("second_partition"))
    return (
        offload + second + ["activation checkpointing"] * bool(choice["activation_checkpointing"])
    )


def _other(other: Document) -> str:
    parts = [f"stage {other['zero_stage']}", f"micro batch {other['micro_batch_size']}"]
    return f"{', '.join([*parts, *_savings(other)])}: {other['why']}"


def _memory(memory: Document, *, fits: bool) -> Table:
    device, capacity = memory["device"], memory["capacity"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for name in _ITEMS:
        filled = min(_BAR, round(_BAR * device[name] / capacity))
        table.add_row(name, render_bytes(device[name]), "█" * filled + "·" * (_BAR - filled))
    verdict = "[green]fits[/]" if fits else "[bold red]does not fit[/]"
    table.add_row(
        "peak",
        render_bytes(device["total"]),
        f"in {device['peak_phase']}, of {render_bytes(capacity)} with {memory['margin']:.0%} "
        f"kept free: {verdict}",
    )
    return table


def _host(host: Document) -> str:
    parts = ", ".join(
        f"{name} {render_bytes(host[name])}"
        for name in ("pinned", "pageable", "process", "loading", "export")
        if host[name]
    )
    line = f"{render_bytes(host['total'])} on each host ({parts})"
    if host["capacity"] is None:
        return line
    if host["fits"]:
        return f"{line}, of {render_bytes(host['capacity'])}"
    return (
        f"{line}: [bold red]more than its {render_bytes(host['capacity'])}, "
        "so the kernel would kill a rank (exit -9)[/]"
    )


def _time(time: Document) -> str:
    mfu = f", MFU {time['mfu']:.0%}" if time["mfu"] is not None else ""
    line = (
        f"{render_seconds(time['step_seconds'])} ± {time['error']:.0%} a step, "
        f"{render_count(time['tokens_per_second'])} {time['unit']}/s{mfu}, "
        f"bound by {time['bound_by']} (speeds: {escape(time['source'])})"
    )
    if not time["total_seconds"]:
        return line
    hours = f"{render_seconds(time['total_seconds'])} in all, {time['gpu_hours']:.0f} GPU-hours"
    money = f", costs {time['cost']:,.2f}" if time.get("cost") is not None else ""
    return f"{line}; {hours}{money}"
