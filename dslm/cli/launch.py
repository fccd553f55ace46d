"""`dslm launch`: a script of one's own, launched and supervised as a training is."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import options, terminal


def launch(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python file.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Generate its DeepSpeed config; the path is in DSLM_DS_CONFIG.",
        ),
    ] = None,
    pass_config: Annotated[
        bool, typer.Option("--pass-config", help="Also pass the script `--deepspeed PATH`.")
    ] = False,
    set_: options.Set = None,
    hostfile: options.Hostfile = None,
    num_nodes: options.NumNodes = None,
    num_gpus: options.NumGpus = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    launcher: options.Launcher = None,
    no_preflight: options.NoPreflight = False,
    master_port: options.MasterPort = None,
    output: options.Output = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Run your own training script on every rank, launched and supervised by dslm.

    What stands after `--` goes to the script.

    [dim]Examples:[/dim]

        dslm launch train.py --num-gpus 2 -- --epochs 3

        dslm launch train.py --recipe llama-3.2-1b --pass-config -- --lr 1e-5
    """
    from dslm.cli.progress import RunScreen
    from dslm.cli.train import report_end, show_dry_run
    from dslm.decide.checks.base import Verb
    from dslm.decide.checks.every import Asking
    from dslm.decide.job import check_arguments, check_port
    from dslm.decide.ready import ready_job
    from dslm.errors import OptionError, Where
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.training import launch_script, script_request
    from dslm.recipe.load import load_recipe

    if not script.is_file():
        raise OptionError("there is no such script", where=Where(file=script))
    check_arguments(context.args)
    for name, given in (("--pass-config", pass_config), ("--set", set_), ("--force", force)):
        if given and recipe is None:
            raise OptionError(
                "there is no config without a recipe",
                where=Where(key=name),
                hint="add `--recipe RECIPE`",
            )
    loaded = load_recipe(recipe, set_ or ()) if recipe else None
    fleet = fleet_of(
        hostfile=hostfile,
        launcher=launcher,
        num_nodes=num_nodes,
        num_gpus=num_gpus,
        include=include,
        exclude=exclude,
        ranks=loaded.recipe.parallel.ranks if loaded else "auto",
        preflight=not no_preflight,
    )
    known = not dry_run or fleet.device_known
    asking = Asking(verb=Verb.LAUNCH, force=force, device_known=known)
    decide_on = partial(ready_job, loaded, asking=asking, on_phase=terminal.say) if loaded else None
    if dry_run:
        job = decide_on(fleet.cluster) if decide_on else None
        preview = script_request(
            script,
            context.args,
            fleet,
            job,
            output,
            pass_config=pass_config,
            master_port=master_port,
        )
        show_dry_run(job, *preview, json=json)
        return
    if not fleet.remote:
        check_port(master_port)
    with RunScreen(terminal.people(), name=script.name) as screen:
        run, outcome = launch_script(
            script,
            context.args,
            fleet,
            decide_on,
            output,
            pass_config=pass_config,
            master_port=master_port,
            command=sys.argv,
            on_event=screen.event,
            on_run=lambda path: screen.label("run", str(path)),
        )
    report_end(run, outcome, json=json)
