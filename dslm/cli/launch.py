"""`dslm launch`: a script of one's own, launched and supervised as a training is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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
    num_gpus: options.NumGpus = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    master_port: options.MasterPort = None,
    output: options.Output = None,
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
    from dslm.cluster.detect import local_cluster
    from dslm.errors import OptionError, Where
    from dslm.launch.job import check_port, decide
    from dslm.launch.run import launch_script, script_request

    if not script.is_file():
        raise OptionError("there is no such script", where=Where(file=script))
    if recipe is None and (pass_config or set_):
        raise OptionError(
            "there is no config without a recipe",
            where=Where(key="--pass-config" if pass_config else "--set"),
            hint="add `--recipe RECIPE`",
        )
    filters: dict[str, Any] = {"num_gpus": num_gpus, "include": include, "exclude": exclude}
    job = decide(recipe, set_ or (), **filters) if recipe else None
    cluster = job.cluster if job else local_cluster(**filters)
    if dry_run:
        request = script_request(
            script,
            context.args,
            cluster,
            job,
            output,
            pass_config=pass_config,
            master_port=master_port,
        )
        show_dry_run(job, request, json=json)
        return
    check_port(master_port)
    with RunScreen(terminal.people(), name=script.name, peak_flops=None) as screen:
        run, outcome = launch_script(
            script,
            context.args,
            cluster,
            job,
            output,
            pass_config=pass_config,
            master_port=master_port,
            command=sys.argv,
            on_event=screen.event,
            on_run=lambda path: screen.note(f"[bold]run[/] {path}"),
        )
    report_end(run, outcome, json=json)
