"""`dslm train`: the main job."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dslm.cli import options, terminal
from dslm.errors import Interrupted, RunFailed, Where
from dslm.units import render_seconds

if TYPE_CHECKING:
    from dslm.cluster.hosts import Cluster
    from dslm.decide.job import Job
    from dslm.launch.spec import LaunchRequest
    from dslm.launch.supervise import Outcome
    from dslm.lifecycle.sbatch import Batch
    from dslm.recipe.schema import Recipe
    from dslm.run.attempt import Attempt
    from dslm.run.directory import RunDirectory


def train(
    recipe: options.RecipeArgument,
    set_: options.Set = None,
    hostfile: options.Hostfile = None,
    num_nodes: options.NumNodes = None,
    num_gpus: options.NumGpus = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    launcher: options.Launcher = None,
    slurm: options.Slurm = False,
    no_preflight: options.NoPreflight = False,
    max_restarts: options.MaxRestarts = None,
    min_nodes: options.MinNodes = None,
    master_port: options.MasterPort = None,
    output: options.Output = None,
    resume: options.Resume = False,
    trust_checkpoint: options.TrustCheckpoint = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train a model: plan it, launch it through DeepSpeed, watch it, and say what came out.

    [dim]Examples:[/dim]

        dslm train quickstart

        dslm train llama-3.2-1b --set data.train=corpus/ -o runs/mine

        dslm train llama-3.2-1b -H hostfile --max-restarts 5 -o /shared/mine

        dslm train llama-3.1-8b --slurm --num-nodes 4 --num-gpus 8 -o /shared/mine

        dslm train mine.yaml --num-gpus 2 --dry-run
    """
    if slurm:
        from dslm.lifecycle.sbatch import batch_of

        batch = batch_of(
            recipe,
            set_ or (),
            num_nodes=num_nodes,
            num_gpus=num_gpus,
            output=output,
            others={
                "--hostfile": hostfile,
                "--include": include,
                "--exclude": exclude,
                "--launcher": launcher if launcher != "slurm" else None,
            },
            passed_on={
                "--max-restarts": max_restarts,
                "--min-nodes": min_nodes,
                "--master-port": master_port,
                "--no-preflight": no_preflight,
                "--resume": resume,
                "--trust-checkpoint": trust_checkpoint,
                "--force": force,
            },
        )
        show_batch(batch, dry_run=dry_run, json=json)
        return
    from dslm.decide.checks.base import Verb
    from dslm.decide.checks.every import Asking
    from dslm.decide.job import check_port
    from dslm.decide.ready import ready_job
    from dslm.lifecycle.fleet import fleet_of
    from dslm.recipe.load import load_recipe

    loaded = load_recipe(recipe, set_ or ())
    fleet = fleet_of(
        hostfile=hostfile,
        launcher=launcher,
        num_nodes=num_nodes,
        num_gpus=num_gpus,
        include=include,
        exclude=exclude,
        ranks=loaded.recipe.parallel.ranks,
        max_restarts=max_restarts,
        min_nodes=min_nodes,
        preflight=not no_preflight,
    )

    asking = Asking(verb=Verb.TRAIN, force=force, device_known=not dry_run or fleet.device_known)

    def decide_on(cluster: Cluster, *, like: Recipe | None = None) -> Job:
        return ready_job(loaded, cluster, asking, resumed=like, on_phase=terminal.say)

    if dry_run:
        from dslm.lifecycle.training import training_request

        if fleet.remote:
            terminal.say("planned for devices like those here; a launch asks the hosts for theirs")
        job = decide_on(fleet.cluster)
        show_dry_run(job, *training_request(job, fleet, output, master_port=master_port), json=json)
        return
    if not fleet.remote:
        check_port(master_port)
    from dslm.cli.progress import RunScreen
    from dslm.lifecycle.training import launch_training

    with RunScreen(terminal.people(), name=loaded.name) as screen:
        run, outcome = launch_training(
            fleet,
            loaded,
            decide_on,
            output,
            master_port=master_port,
            resume=resume,
            trust_checkpoint=trust_checkpoint,
            command=sys.argv,
            on_event=screen.event,
            on_run=lambda path: screen.label("run", str(path)),
        )
    report_end(run, outcome, json=json)


def show_batch(batch: Batch, *, dry_run: bool, json: bool) -> None:
    """Submit a batch job and say which it is; or show its script."""
    from dslm.lifecycle.sbatch import batch_script, submit

    if dry_run:
        script = batch_script(batch)
        if json:
            terminal.write_json({"script": script, "run": str(batch.run)})
        else:
            terminal.write(script)
        return
    job, file = submit(batch)
    if json:
        terminal.write_json({"job": job, "script": str(file), "run": str(batch.run)})
        return
    terminal.say(f"job {job} trains into {shown_path(batch.run)}; its script is {shown_path(file)}")
    terminal.say(f"next: squeue --jobs {job} · dslm runs watch {shown_path(batch.run)}")


def show_dry_run(job: Job | None, request: LaunchRequest, attempt: Attempt, *, json: bool) -> None:
    """Show what a launch would do: recipe, DeepSpeed config, command, what every rank is told."""
    from dataclasses import asdict

    told = {
        name: value
        for name, value in asdict(attempt).items()
        if value and name not in ("number", "control")
    }
    if json:
        decided = (
            {"recipe": job.recipe.model_dump(mode="json"), "ds_config": job.config.values}
            if job
            else {}
        )
        terminal.write_json(
            {
                **decided,
                "command": list(request.argv),
                "environment": dict(request.environment),
                "attempt": told,
            }
        )
        return
    import json as json_format

    from dslm.recipe.load import dump_recipe

    if job is not None:
        terminal.write("# recipe.yaml\n" + dump_recipe(job.recipe))
        terminal.write("# ds_config.json\n" + json_format.dumps(job.config.values, indent=2))
    terminal.write("\n# what every rank reads\n" + json_format.dumps(told, indent=2))
    for path, content in request.files.items():
        terminal.write(f"\n# {shown_path(path)}\n{content}")
    terminal.write("\n# command\n" + request.render())


def report_end(run: RunDirectory, outcome: Outcome, *, json: bool) -> None:
    """Say how a run ended: what was made, where, what to run next; or what went wrong.

    Raises:
        RunFailed: it failed.
        Interrupted: it was stopped.
    """
    from dslm.diagnose.explain import diagnose
    from dslm.launch.supervise import Status
    from dslm.run.summary import summarize

    summary = summarize(run)
    if outcome.status == Status.FAILED and summary.failure is None:
        # it is in the run's events, unless the disk is full and these could not be written any more
        error = diagnose(run, outcome).event(outcome.attempt, noticed=outcome.noticed)
        summary = replace(summary, status="failed", error=error.message, failure=error)
    if json:
        terminal.write_json(summary.document())
    folder = shown_path(run.path)
    if outcome.status in (Status.STOPPED, Status.KILLED):
        how = "stopped" if outcome.status == Status.STOPPED else "stopped before it could save"
        last = summary.step
        raise Interrupted(
            f"the run was {how}, at step {last}",
            where=Where(file=folder),
            hint=f"`dslm runs show {folder}` shows it; `--resume` goes on with it",
        )
    failure = summary.failure
    if outcome.status == Status.FAILED and failure is not None:
        from dslm.cli.failure import headline, panel

        terminal.say(panel(failure, folder))
        raise RunFailed(
            headline(failure),
            where=Where(file=folder),
            hint=f"`dslm runs show {folder}` shows this again",
        )
    _say_what_was_made(run)


def _say_what_was_made(run: RunDirectory) -> None:
    from rich.markup import escape
    from rich.panel import Panel
    from rich.text import Text

    from dslm.run.events import read_events
    from dslm.run.manifest import read_manifest

    folder = escape(str(shown_path(run.path)))
    end: dict[str, Any] = next(
        (e for e in reversed(read_events(run.events)[0]) if e["event"] == "end"), {}
    )
    if end.get("sample"):
        terminal.say(Panel(Text(str(end["sample"])), title="a sample of the model", expand=False))
    attempt = read_manifest(run).attempts[-1]
    took = render_seconds((attempt.ended or attempt.started) - attempt.started)
    lines = [f"[bold green]done[/] in {took}: {folder}"]
    if run.model.is_dir():
        lines.append(f"  model        {folder}/model   (loads with from_pretrained)")
    if run.checkpoints.is_dir():
        lines.append(f"  checkpoints  {folder}/checkpoints")
    lines.append(f"  next         dslm runs show {folder}")
    terminal.say(terminal.styled("\n".join(lines)))


def shown_path(path: Path) -> Path:
    """A path as people know it: relative to where they are, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
