"""`dslm plan`: will it fit, how fast will it be, what to choose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dslm.cli import complete, options, terminal

_SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BAR = 32  # characters


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A preset, a YAML file, a model folder, its config.json, or a Hub name.",
            autocompletion=complete.recipes,
        ),
    ] = None,
    with_: options.With = None,
    set_: options.Set = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Devices in total.")] = None,
    hosts: Annotated[
        int | None,
        typer.Option("--hosts", min=1, help="Hosts they are spread over; default: 8 a host."),
    ] = None,
    device: options.Device = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            "--hostfile", "-H", metavar="FILE", help="The hosts, instead of --gpus and --hosts."
        ),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(
            "--params", metavar="COUNT", help="Without a recipe: parameters, such as 7.5B."
        ),
    ] = None,
    zero: Annotated[
        int | None,
        typer.Option("--zero", min=0, max=3, help="ZeRO stage, with --params; default: 0."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="A table over stages and cluster sizes.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Every term of memory: bytes, life, source.")
    ] = False,
    longest: Annotated[
        bool, typer.Option("--longest", help="The longest sequence that fits.")
    ] = False,
    largest: Annotated[
        bool, typer.Option("--largest", help="The largest micro batch that fits.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Say whether a recipe fits, how fast it will be, and what to choose; starts nothing.

    [dim]Examples:[/dim]

        dslm plan llama-3.1-8b --gpus 16 --device h100-80gb

        dslm plan llama-3.1-70b --device a100-80gb --sweep

        dslm plan --params 7.5B --zero 1 --gpus 64 --json
    """
    from dslm.errors import OptionError

    if (recipe is None) == (params is None):
        raise OptionError(
            "give a recipe, or `--params COUNT`", hint="`dslm plan llama-3.1-8b --gpus 8`"
        )
    given: dict[str, object] = {"--with": with_, "--set": set_, "--gpus": gpus, "--hosts": hosts}
    given |= {"--hostfile": hostfile, "--sweep": sweep, "--explain": explain}
    given |= {"--longest": longest, "--largest": largest}
    if params is not None:
        _refuse_beside_params({**given, "--gpus": None})
        _plan_states(params, zero or 0, gpus or 1, device, json=json)
        return
    options.refuse_ignored(
        {"--zero": zero}, "with a recipe", hint=f"`--set parallel.zero_stage={zero}`"
    )
    if sweep:
        _refuse_beside_sweep({**given, "--with": None, "--set": None, "--sweep": None})
    if longest or largest:
        options.refuse_ignored({"--explain": explain}, "with `--longest` and `--largest`")
    from dslm.cli.ledger import show_limits, show_terms
    from dslm.decide.advice import check_fit
    from dslm.decide.checks.base import Verb
    from dslm.decide.checks.every import Asking
    from dslm.decide.job import is_bare, load_to_plan
    from dslm.decide.place import planned_cluster
    from dslm.decide.ready import ready_job
    from dslm.plan.report import document
    from dslm.plan.report import sweep as sweep_rows

    here = all(given is None for given in (gpus, hosts, device, hostfile))
    loaded = load_to_plan(str(recipe), options.settings(set_, with_))
    cluster = planned_cluster(
        gpus=gpus,
        hosts=hosts,
        device=device,
        hostfile=hostfile,
        ranks=loaded.recipe.parallel.ranks,
    )
    verb = Verb.BARE if is_bare(str(recipe)) else Verb.PLAN
    # what does not fit is shown first, and said then
    asking = Asking(verb=verb, here=here, force=True)
    with terminal.busy_when_told() as told:
        made = ready_job(loaded, cluster, asking, on_phase=told)
    if sweep or longest or largest:
        if made.profile is None or not made.profile.passes:
            raise OptionError(f"the model couldn't be traced: {made.untraced}")
        if not sweep:
            show_limits(made, cluster, longest=longest, largest=largest, json=json)
            return
        rows = sweep_rows(made.recipe, cluster.device, made.profile, _SWEEP)
        if json:
            terminal.write_json(rows)
        else:
            _show_sweep(rows)
        return
    found = document(made.plan, made.recipe, cluster, made.profile, made.untraced)
    if json:
        terminal.write_json(found)
    else:
        _show(found)
        if explain:
            show_terms(found["memory"])
    check_fit(made, can_force=False)


def _refuse_beside_params(given: dict[str, object]) -> None:
    options.refuse_ignored(
        given,
        "with `--params`: without a model only its states are counted",
        hint="`--zero STAGE --gpus N`, or give a recipe or a config.json",
    )


def _refuse_beside_sweep(given: dict[str, object]) -> None:
    options.refuse_ignored(
        given,
        "with `--sweep`, which compares clusters of many sizes",
        hint="`--device NAME` says of which devices",
    )


def _plan_states(params: str, zero: int, gpus: int, device: str | None, *, json: bool) -> None:
    from dslm.decide.place import planned_device
    from dslm.errors import OptionError, Where
    from dslm.plan.report import params_document
    from dslm.units import parse_count, render_bytes, render_count

    try:
        count = parse_count(params)
    except ValueError as failure:
        raise OptionError(str(failure), where=Where(key="--params")) from failure
    found = params_document(
        count, stage=zero, gpus=gpus, device=planned_device(device) if device is not None else None
    )
    if json:
        terminal.write_json(found)
        return
    items = found["memory"]["device"]
    terminal.show(
        f"{render_count(count)} parameters, ZeRO stage {zero}, {gpus} devices: model states "
        f"{render_bytes(items['total'])} a device"
    )
    terminal.say(found["note"])


def _show(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from dslm.units import render_bytes, render_count, render_seconds

    choice, memory, cluster = found["choice"], found["memory"], found["cluster"]
    parameters = found["model"]["parameters"]
    off = found["model"]["off"]
    guess = f" (activations within {off:.1%})" if off and not found["model"]["exact"] else ""
    terminal.show(
        f"{render_count(parameters) if parameters else '?'} parameters{guess} on "
        f"{cluster['world_size']} × {cluster['device']}, {cluster['hosts']} host"
        f"{'s' if cluster['hosts'] > 1 else ''}"
    )
    picked = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in choice.items())
    terminal.show(f"[bold]choice[/]  {picked}")
    device = memory["device"]
    if device is not None:
        table = Table(box=None, show_header=False)
        capacity = memory["capacity"]
        for name in (
            "parameters",
            "gradients",
            "optimizer",
            "activations",
            "logits",
            "buffers",
            "context",
        ):
            filled = min(_BAR, round(_BAR * device[name] / capacity))
            table.add_row(name, "█" * filled + "·" * (_BAR - filled), render_bytes(device[name]))
        verdict = "[green]fits[/]" if found["fits"] else "[bold red]does not fit[/]"
        room = f"{render_bytes(capacity)}, {memory['margin']:.0%} kept free"
        table.add_row(
            "peak",
            f"in {device['peak_phase']}, of {room}: {verdict}",
            render_bytes(device["total"]),
        )
        terminal.show(table)
        terminal.show(f"[bold]host[/]    {_host_line(memory['host'])}")
    else:
        terminal.show(
            "[bold yellow]not known[/]  whether it fits: the model couldn't be traced: "
            f"{escape(found['model']['untraced'])}"
        )
    time = found["time"]
    if time is not None:
        whole = ""
        if time["total_seconds"]:
            hours = f"{time['gpu_hours']:.0f} GPU-hours"
            whole = f"; all in {render_seconds(time['total_seconds'])}, {hours}"
        terminal.show(
            f"[bold]time[/]    {render_seconds(time['step_seconds'])} a step, "
            f"{render_count(time['tokens_per_second'])} tokens/s, MFU {time['mfu']:.0%}, "
            f"bound by {time['bound_by']}{whole}"
        )
    for other in found["runners_up"][:3]:
        what = f"stage {other['zero_stage']}, micro batch {other['micro_batch_size']}"
        if other["offload"] != "none":
            what += f", offload {other['offload']}"
        if other["activation_checkpointing"]:
            what += ", activation checkpointing"
        terminal.show(f"[dim]not[/]     {what}: {other['why']}")
    smallest = found["smallest_world_size"]
    if smallest:
        terminal.show(f"[dim]at least {smallest} such device{'s' if smallest > 1 else ''}[/]")


def _host_line(host: dict[str, Any]) -> str:
    from dslm.units import render_bytes

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
        "so the kernel would end a rank (exit -9)[/]"
    )


def _show_sweep(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from dslm.units import render_bytes, render_count

    table = Table(
        "gpus", "stage", "micro batch", "recompute", "memory", "fits", "tokens/s", box=None
    )
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
    terminal.show(table)
