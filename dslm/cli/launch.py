"""`dslm launch`: run your own script under dslm's launcher and supervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import options, terminal
from dslm.lifecycle.placement import Placement


@options.placed()
def launch(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python file.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Generate this recipe's DeepSpeed config; DSLM_DS_CONFIG holds its path.",
        ),
    ] = None,
    pass_config: Annotated[
        bool, typer.Option("--pass-config", help="Also pass `--deepspeed PATH` to the script.")
    ] = False,
    with_: options.With = None,
    set_: options.Set = None,
    placement: Placement = options.ANYWHERE,
    master_port: options.MasterPort = None,
    output: options.Output = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Run your own training script on every rank, launched and supervised by dslm.

    Arguments after `--` go to the script.

    [dim]Examples:[/dim]

        dslm launch train.py --num-gpus 2 -- --epochs 3

        dslm launch train.py --recipe llama-3.2-1b --pass-config -- --lr 1e-5
    """
    from dslm.decide.job import check_arguments
    from dslm.errors import OptionError, Where
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.request import ScriptRequest
    from dslm.recipe.load import load_recipe

    if not script.is_file():
        raise OptionError("there is no such script", where=Where(file=script))
    check_arguments(context.args)
    for name, given in (
        ("--pass-config", pass_config),
        ("--with", with_),
        ("--set", set_),
        ("--force", force),
    ):
        if given and recipe is None:
            raise OptionError(
                "there is no config without a recipe",
                where=Where(key=name),
                hint="add `--recipe RECIPE`",
            )
    loaded = load_recipe(recipe, options.settings(set_, with_)) if recipe else None
    request = ScriptRequest(
        script=script,
        arguments=tuple(context.args),
        fleet=fleet_of(placement, loaded.recipe.parallel.ranks if loaded else "auto"),
        recipe=loaded,
        pass_config=pass_config,
        force=force,
        output=output,
        master_port=master_port,
        command=tuple(sys.argv),
    )
    if dry_run:
        from dslm.cli.screens.dry_run import show_dry_run
        from dslm.lifecycle.script import preview_script

        show_dry_run(request.fleet, preview_script(request, terminal.say), json=json)
        return
    from dslm.cli.screens.ending import show_end
    from dslm.cli.screens.following import FollowedScript
    from dslm.cli.screens.progress import RunScreen
    from dslm.lifecycle.script import run_script

    with (
        RunScreen(terminal.people(), name=script.name) as screen,
        FollowedScript(screen) as listener,
    ):
        ended = run_script(request, listener)
    show_end(ended, json=json)
