"""`dslm train`: the main job."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import options, terminal
from dslm.lifecycle.placement import Placement

if TYPE_CHECKING:
    from dslm.lifecycle.request import TrainingRequest


@options.placed(restarts=True)
def train(
    recipe: options.OptionalRecipe = None,
    model: options.Model = None,
    with_: options.With = None,
    set_: options.Set = None,
    placement: Placement = options.ANYWHERE,
    queue: options.Queue = False,
    master_port: options.MasterPort = None,
    output: options.Output = None,
    resume: options.Resume = False,
    weights_only: options.WeightsOnly = None,
    trust_checkpoint: options.TrustCheckpoint = False,
    force: options.Force = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="First verify the layout, as `dslm verify` does."),
    ] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train a model: plan it, launch it through DeepSpeed, watch it, and report the result.

    [dim]Examples:[/dim]

        dslm train quickstart

        dslm train llama-3.2-1b --set data.train=corpus/ -o runs/mine

        dslm train llama-3.1-8b --with sft,lora --set data.train=chats.jsonl

        dslm train --model org/model --with sft,lora --set data.train=chats.jsonl

        dslm train llama-3.2-1b -H hostfile --max-restarts 5 -o /shared/mine

        dslm train llama-3.2-1b --weights-only runs/mine -o runs/next --set data.train=more/

        dslm train llama-3.1-8b --slurm --num-nodes 4 --num-gpus 8 -o /shared/mine

        dslm train mine.yaml --num-gpus 2 --dry-run
    """
    name, overrides = options.recipe_of(recipe, model, set_, with_)
    if weights_only is not None:
        overrides += _weights_of(weights_only, resume=resume, dry_run=dry_run)
    if queue:
        passed_on = {
            "--master-port": master_port,
            "--resume": resume,
            "--trust-checkpoint": trust_checkpoint,
            "--force": force,
            "--verify": verify,
        }
        _submit(
            name,
            overrides,
            placement,
            output,
            passed_on,
            dry_run=dry_run,
            json=json,
        )
        return
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.request import TrainingRequest
    from dslm.recipe.load import load_recipe

    loaded = load_recipe(name, overrides)
    request = TrainingRequest(
        recipe=loaded,
        fleet=fleet_of(placement, loaded.recipe.parallel.ranks),
        output=output,
        master_port=master_port,
        resume=resume,
        trust_checkpoint=trust_checkpoint,
        force=force,
        command=tuple(sys.argv),
    )
    if dry_run:
        options.refuse_ignored(
            {"--verify": verify}, "with `--dry-run`, which starts nothing", "`dslm verify RECIPE`"
        )
        from dslm.cli.screens.dry_run import show_dry_run
        from dslm.lifecycle.training import preview_training

        if request.fleet.remote:
            terminal.say("planned for devices like those here; a launch asks the hosts for theirs")
        show_dry_run(request.fleet, preview_training(request, terminal.say), json=json)
        return
    from dslm.cli.screens.ending import show_end
    from dslm.cli.screens.progress import RunScreen
    from dslm.lifecycle import training

    if verify:
        request = replace(request, proof=_verified(request))
    with RunScreen(terminal.people(), name=loaded.name) as screen:
        ended = training.train(request, screen)
    show_end(ended, json=json)


def _weights_of(run: str, *, resume: bool, dry_run: bool) -> list[str]:
    """Return the overrides of a recipe that let it begin with the weights of a run.

    Raises:
        OptionError: there are none to begin with, or an option has no effect beside this one.
    """
    from dslm.ask.models import weights_of

    options.refuse_ignored(
        {"--resume": resume}, "beside `--weights-only`, which starts a new run", "leave one out"
    )
    return weights_of(run, terminal.say, exports=not dry_run)


def _verified(request: TrainingRequest) -> Path:
    """Verify a training's layout in a run directory of its own; the file that says what was found.

    Raises:
        Differs: it isn't what one process would learn.
    """
    from dslm.cli.verify import refuse_differences, verify_one

    folder = request.output
    beside = folder.with_name(f"{folder.name}-verify") if folder is not None else None
    done = verify_one(replace(request, output=beside, resume=False))
    refuse_differences([done])
    return done.run.verified


def _submit(
    recipe: str,
    overrides: Sequence[str],
    placement: Placement,
    output: Path | None,
    passed_on: Mapping[str, int | bool | None],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    """Submit a batch job and say which it is; or show its script."""
    from dslm.launch.sites import queue_of, site_named
    from dslm.lifecycle.later import batch_of

    queue, site = queue_of(options.QUEUE), site_named(options.QUEUE)
    batch = batch_of(recipe, overrides, site, placement, output, passed_on)
    if dry_run:
        script = queue.script(batch)
        if json:
            terminal.write_json({"script": script, "run": str(batch.run)})
        else:
            terminal.write(script)
        return
    submitted = queue.submit(batch)
    if json:
        terminal.write_json(
            {"job": submitted.job, "script": str(submitted.script), "run": str(batch.run)}
        )
        return
    run, file = terminal.shown_path(batch.run), terminal.shown_path(submitted.script)
    terminal.say(f"job {submitted.job} trains into {run}; its script is {file}")
    terminal.say(f"next: {submitted.look} · dslm runs watch {run}")
