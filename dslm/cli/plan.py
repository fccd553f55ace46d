"""`dslm plan`: will it fit, how fast will it be, what to choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import complete, options, terminal
from dslm.units import number_of

if TYPE_CHECKING:
    from dslm.cli.screens.plan import Document
    from dslm.decide.checks.base import Verb
    from dslm.recipe.load import LoadedRecipe

_SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A preset, a YAML file, a model folder, its config.json, or a Hub name.",
            autocompletion=complete.recipes,
        ),
    ] = None,
    model: options.Model = None,
    with_: options.With = None,
    set_: options.Set = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Devices in total.")] = None,
    hosts: Annotated[
        int | None,
        typer.Option(
            "--hosts", min=1, help="Hosts to spread them over; default: 8 devices a host."
        ),
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
            "--params",
            metavar="COUNT",
            help="Plan without a recipe for this many parameters, such as 7.5B.",
        ),
    ] = None,
    zero: Annotated[
        int | None,
        typer.Option("--zero", min=0, max=3, help="ZeRO stage, with --params; default: 0."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Show a table over stages and cluster sizes.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every term of memory: bytes, life, source.")
    ] = False,
    longest: Annotated[
        bool, typer.Option("--longest", help="Find the longest sequence that fits.")
    ] = False,
    largest: Annotated[
        bool, typer.Option("--largest", help="Find the largest micro batch that fits.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0, help="What an hour of one device costs."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Say whether a recipe fits, how fast it will be, and what to choose, without starting it.

    [dim]Examples:[/dim]

        dslm plan llama-3.1-8b --gpus 16 --device h100-80gb

        dslm plan llama-3.1-70b --device a100-80gb --sweep

        dslm plan --params 7.5B --zero 1 --gpus 64 --json
    """
    from dslm.errors import OptionError

    if (recipe is None and model is None) == (params is None):
        raise OptionError(
            "give a recipe, or `--params COUNT`", hint="`dslm plan llama-3.1-8b --gpus 8`"
        )
    given: dict[str, object] = {
        "--model": model,
        "--with": with_,
        "--set": set_,
        "--gpus": gpus,
        "--hosts": hosts,
    }
    given |= {"--hostfile": hostfile, "--sweep": sweep, "--explain": explain}
    given |= {"--longest": longest, "--largest": largest, "--price": price}
    if params is not None:
        _refuse_beside_params({**given, "--gpus": None})
        _plan_states(params, zero or 0, gpus or 1, device, json=json)
        return
    _refuse_beside_a_model({**given, "--zero": zero})
    if price is not None:
        set_ = [*(set_ or []), f"cluster.price={price}"]
    from dslm.cli.ledger import show_limits
    from dslm.decide.advice import check_fit
    from dslm.decide.checks.every import Asking
    from dslm.decide.job import planned_document
    from dslm.decide.place import planned_cluster
    from dslm.decide.ready import ready_job
    from dslm.plan.report import sweep as sweep_rows

    here = all(given is None for given in (gpus, hosts, device, hostfile))
    loaded, verb = _loaded(recipe, model, set_, with_)
    cluster = planned_cluster(
        gpus=gpus,
        hosts=hosts,
        device=device,
        hostfile=hostfile,
        ranks=loaded.recipe.parallel.ranks,
    )
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
        rows = sweep_rows(made.recipe, cluster.device, made.profile, _SWEEP, made.permits)
        _show_sweep(rows, json=json)
        return
    found = planned_document(made)
    _refuse_unknown_cost(price, found)
    _show_plan(found, explain=explain, json=json)
    check_fit(made, can_force=False)


def _refuse_unknown_cost(price: float | None, found: Document) -> None:
    """Refuse a price where nothing says how long the run takes."""
    from dslm.errors import OptionError, Where

    time = found["time"]
    if price is None or (isinstance(time, dict) and time.get("cost") is not None):
        return
    raise OptionError(
        "`--price` has no effect: how long the run takes isn't known",
        where=Where(key="--price"),
        hint="`--set duration.steps=N` says how long; `dslm doctor --measure` finds out how fast "
        "this machine is",
    )


def _loaded(
    recipe: str | None, model: str | None, set_: list[str] | None, with_: list[str] | None
) -> tuple[LoadedRecipe, Verb]:
    """What is planned: a recipe, that of `--model`, or a model of which only sizes are known."""
    from dslm.decide.checks.base import Verb
    from dslm.decide.job import is_bare, load_to_plan
    from dslm.recipe.load import load_recipe

    if model is not None or recipe is None:
        return load_recipe(*options.recipe_of(recipe, model, set_, with_)), Verb.PLAN
    verb = Verb.BARE if is_bare(recipe) else Verb.PLAN
    return load_to_plan(recipe, options.settings(set_, with_)), verb


def _show_plan(found: Document, *, explain: bool, json: bool) -> None:
    from dslm.cli.ledger import show_terms
    from dslm.cli.screens.plan import plan_page

    if json:
        terminal.write_json(found)
        return
    for part in plan_page(found):
        terminal.show(part)
    if explain:
        show_terms(found["memory"])


def _show_sweep(rows: list[Document], *, json: bool) -> None:
    from dslm.cli.screens.plan import sweep_table

    if json:
        terminal.write_json(rows)
    else:
        terminal.show(sweep_table(rows))


def _refuse_beside_params(given: dict[str, object]) -> None:
    options.refuse_ignored(
        given,
        "with `--params`: without a model only its states are counted",
        hint="`--zero STAGE --gpus N`, or give a recipe or a config.json",
    )


def _refuse_beside_a_model(given: dict[str, object]) -> None:
    hint = f"`--set parallel.zero_stage={given['--zero']}`"
    options.refuse_ignored({"--zero": given["--zero"]}, "with a recipe", hint=hint)
    if given["--sweep"]:
        _refuse_beside_sweep(
            {**given, "--model": None, "--with": None, "--set": None, "--sweep": None}
        )
    if given["--longest"] or given["--largest"]:
        without = {name: given[name] for name in ("--explain", "--price")}
        options.refuse_ignored(without, "with `--longest` and `--largest`")


def _refuse_beside_sweep(given: dict[str, object]) -> None:
    options.refuse_ignored(
        given,
        "with `--sweep`, which compares clusters of many sizes",
        hint="`--device NAME` chooses the device",
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
        f"{render_count(count)} parameters, ZeRO stage {zero}, {number_of(gpus, 'device')}: "
        f"model states "
        f"{render_bytes(items['total'])} a device"
    )
    terminal.say(found["note"])
