"""A whole training: make its run directory, launch it, restart it after failures, until it ends.

A request comes in and a listener gets the events; what is decided in between are values:
hosts (`dslm.lifecycle.rendezvous`), the job (`dslm.decide.job`), the checkpoint to resume from
(`dslm.lifecycle.resume`), the attempt (`dslm.lifecycle.attempt`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from dslm.ask.hub import hub_remarks
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.job import Job, check_port, plan_document
from dslm.files import write_atomic, write_json
from dslm.host.network import free_port
from dslm.launch.outcome import Outcome
from dslm.lifecycle.attempt import AttemptPlan, RankProgram, preview, run_attempt
from dslm.lifecycle.folder import check_output, default_folder, make_run
from dslm.lifecycle.owned import owned_run
from dslm.lifecycle.rendezvous import Rendezvous, Training, gather, largest_job
from dslm.lifecycle.request import Ended, Listener, Preview, TrainingRequest
from dslm.lifecycle.resumable import check_resumable, resume_command, run_to_resume
from dslm.lifecycle.resume import ResumePoint, resume_point
from dslm.reach.preflight import Requirements
from dslm.recipe.load import dump_recipe, recipe_of_run
from dslm.recipe.schema import Recipe
from dslm.run import events
from dslm.run.checkpoints import SavedLayout
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from dslm.run.manifest import begin_here, read_manifest

_WORKER = "dslm.worker.main"
_MOST_ROLLBACKS = 10  # of a run, each with a batch that is left out
_PAUSE_SECONDS = 2.0  # between attempts: sockets and devices of the last one are released


def train(request: TrainingRequest, listener: Listener) -> Ended:
    """Train: in a new run directory, or on in an unfinished one; again after a failure.

    Raises:
        InputError: the recipe, an option or the folder is wrong.
        PreflightError: too few hosts are fit.
        DoesNotFit: the plan says so.
    """
    if not request.fleet.remote:
        check_port(request.master_port)
    old = run_to_resume(request)
    folder = old.path if old else (request.output or default_folder(request.recipe.name)).absolute()
    with owned_run(folder, listener) as run:
        return _train(request, run, listener, resumed=recipe_of_run(old.recipe) if old else None)


def _train(
    request: TrainingRequest, run: RunDirectory, listener: Listener, *, resumed: Recipe | None
) -> Ended:
    asking = Asking(verb=Verb.TRAIN, force=request.force)
    training = Training(recipe=request.recipe, asking=asking, report=listener.note, resumed=resumed)
    most, notes = request.fleet.max_restarts, []
    restarts = rollbacks = 0
    while True:
        port = request.master_port or free_port()
        first = restarts + rollbacks == 0
        rendezvous, job = _resolve(request, training, run, port, first=first)
        if first:
            if resumed is None:
                make_run(run.path, job.name, _files(job), request.command, job.cluster.hosts)
            else:
                notes = check_resumable(run, resumed, job.recipe)
            listener.run_made(run.path)
            for note in [*notes, *_proof(request, run, job)]:
                listener.note(note)
        start = None
        if not first or resumed is not None:
            start = _start(run, job, listener, trust=request.trust_checkpoint)
            _write_again(run, job)
        if not first:
            _record_restart(run, rendezvous, start, listener)
        plan = AttemptPlan(
            fleet=request.fleet,
            rendezvous=rendezvous,
            program=_program(job.recipe, trust=request.trust_checkpoint, probe=request.probe),
            port=port,
            start=start,
            restarts_left=most - restarts,
        )
        outcome, again = run_attempt(run, plan, listener)
        back = rollbacks < _MOST_ROLLBACKS and _rolled_back(run, outcome)
        if not again and not back:
            break
        training = replace(training, resumed=job.recipe)
        restarts, rollbacks = (restarts, rollbacks + 1) if back else (restarts + 1, rollbacks)
        detail = outcome.reason if back else f"{restarts} of {most}: {outcome.reason}"
        listener.event(
            events.Phase(**events.stamp(outcome.attempt), phase="restarting", detail=detail)
        )
        time.sleep(_PAUSE_SECONDS)
    shown = resume_command(request.command, run.path)
    return Ended(run=run, outcome=outcome, resume=shown)


def _proof(request: TrainingRequest, run: RunDirectory, job: Job) -> Iterator[str]:
    """Keep what a verification found in a run's directory; offer one where several hosts train."""
    if request.proof is not None:
        shutil.copyfile(request.proof, run.verified)
    elif len(job.cluster.hosts) > 1 and not request.probe and not run.verified.exists():
        yield (
            "not verified on these hosts: `--verify` first compares some steps with one process, "
            "in three minutes at most"
        )


def _rolled_back(run: RunDirectory, outcome: Outcome) -> bool:
    """Return whether an attempt ended only to leave a batch out."""
    found = read_history(run).last(events.Trouble)
    return found is not None and found.attempt == outcome.attempt and found.action == "rollback"


def preview_training(request: TrainingRequest, report: Callable[[str], None]) -> Preview:
    """Build everything that a training would start and its ranks would read, without writing it."""
    if not request.fleet.remote:
        check_port(request.master_port)
    old = run_to_resume(request)
    resumed = recipe_of_run(old.recipe) if old else None
    known = request.fleet.device_known
    asking = Asking(verb=Verb.TRAIN, force=request.force, device_known=known)
    training = Training(recipe=request.recipe, asking=asking, resumed=resumed, report=report)
    job = training.job(request.fleet.cluster)
    run = old or RunDirectory((request.output or default_folder(request.recipe.name)).absolute())
    remarks = []
    if resumed is None:
        check_output(run.path)
    else:
        remarks += check_resumable(run, resumed, job.recipe)
    if job.untraced:
        remarks.append(f"whether it fits is unknown: the model couldn't be traced: {job.untraced}")
    remarks += hub_remarks(job.recipe, report)
    port = request.master_port or free_port()
    started, attempt = preview(run, request.fleet, _program(job.recipe, trust=False), port)
    return Preview(request=started, attempt=attempt, job=job, remarks=tuple(remarks))


def _resolve(
    request: TrainingRequest, training: Training, run: RunDirectory, port: int, *, first: bool
) -> tuple[Rendezvous, Job]:
    """The hosts of an attempt and the job on them.

    A restart makes do with fewer hosts; at first a batch that the named hosts can't share is an
    error.
    """
    fleet, recipe = request.fleet, request.recipe.recipe
    # ranks write checkpoints together
    shared = recipe.checkpoint.every is not None
    requirements = Requirements(run=run.path, port=port, needs_shared=shared)
    rendezvous = gather(fleet, requirements, training, all_hosts=first)
    if first:
        job = training.job(rendezvous.cluster)
    else:
        job = largest_job(training, rendezvous.cluster, fleet.min_nodes)
    return replace(rendezvous, cluster=job.cluster), job


def _program(recipe: Recipe, *, trust: bool, probe: int = 0) -> RankProgram:
    return RankProgram(
        module=_WORKER,
        environment=recipe.environment,
        grace=recipe.checkpoint.grace,
        watchdog=recipe.watchdog,
        trust_checkpoint=trust,
        probe_steps=probe,
    )


def _files(job: Job) -> dict[str, object]:
    return {
        "recipe.yaml": dump_recipe(job.recipe),
        "ds_config.json": job.config.values,
        "plan.json": plan_document(job),
    }


def _write_again(run: RunDirectory, job: Job) -> None:
    """The files of a run for an attempt that may have other hosts than the last one."""
    write_atomic(run.recipe, dump_recipe(job.recipe))
    begin_here(run)
    write_json(run.ds_config, job.config.values)
    write_json(run.plan, plan_document(job))


def _start(run: RunDirectory, job: Job, listener: Listener, *, trust: bool) -> ResumePoint | None:
    """Find where to resume, and report what was seen on the way."""
    attempt = len(read_manifest(run).attempts) + 1

    def report(detail: str) -> None:
        _record(
            run, listener, events.Phase(**events.stamp(attempt), phase="resuming", detail=detail)
        )

    point = resume_point(
        run,
        layout=_layout(job),
        log=run.logs(attempt) / "convert.log",
        trust=trust,
        report=report,
    )
    if point is not None and point.seconds is not None:
        seconds = round(point.seconds, 3)
        converted = events.Convert(**events.stamp(attempt), step=point.step, seconds=seconds)
        events.write_event(run.events, converted)
    return point


def _layout(job: Job) -> SavedLayout:
    strategy = job.plan.strategy
    return SavedLayout(
        world_size=job.cluster.world_size,
        zero_stage=strategy.zero_stage,
        tensor=strategy.tensor_parallel,
        sequence=strategy.sequence_parallel,
        expert=strategy.expert_parallel,
    )


def _record_restart(
    run: RunDirectory, rendezvous: Rendezvous, start: ResumePoint | None, listener: Listener
) -> None:
    """Write down why there is another attempt, what was lost, and who takes part in it."""
    history = read_history(run)
    step = start.step if start else 0
    reached = max((event.step for event in history.all(events.Step)), default=0)
    saved = [e.time for e in history.all(events.CheckpointSaved) if e.step == step]
    began = saved[-1] if saved else history.started or time.time()
    failure = history.last(events.Error)
    cluster = rendezvous.cluster
    restart = events.Restart(
        **events.stamp(len(read_manifest(run).attempts) + 1),
        cause=failure.message if failure else "",
        step=step,
        lost_steps=max(0, reached - step),
        lost_seconds=round(max(0.0, time.time() - began), 3),
        hosts=tuple(host.name for host in cluster.hosts),
        world_size=cluster.world_size,
        left_out=tuple(f"{r.host}: {r.check}: {r.detail}" for r in rendezvous.left_out),
    )
    _record(run, listener, restart)


def _record(run: RunDirectory, listener: Listener, event: events.Event) -> None:
    """Append an event while no attempt is watched, and pass it on."""
    events.write_event(run.events, event)
    listener.event(event)
