"""A whole run: make its directory, launch it, go on after a failure, say how it ended.

The edge between deciding (`dslm.decide.job`), where it runs (`dslm.lifecycle.fleet`) and watching
(`dslm.launch.supervise`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dslm import environment
from dslm.cluster.hosts import Cluster
from dslm.decide.job import Job, plan_document
from dslm.diagnose.explain import Diagnosis, diagnose
from dslm.errors import DoesNotFit, InputError, OptionError, Where
from dslm.files import write_atomic, write_json
from dslm.host.network import address_towards, free_port
from dslm.launch.control import LOOPBACK, Control
from dslm.launch.remote_processes import RemoteProcesses
from dslm.launch.sites import LAUNCHERS
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.launch.supervise import Kind, Outcome, Status, supervise
from dslm.launch.watchdog import Limits
from dslm.lifecycle.fleet import Fleet, Rendezvous, gather, split
from dslm.lifecycle.folder import default_folder, make_run, named
from dslm.lifecycle.forward import forwarded
from dslm.lifecycle.resume import ResumePoint, check_same_recipe, resume_point, unfinished_run
from dslm.reach.copies import fetch, send
from dslm.recipe.load import LoadedRecipe, dump_recipe, read_resolved
from dslm.recipe.schema import Recipe, Watchdog
from dslm.run.attempt import Attempt, ControlAddress
from dslm.run.directory import RunDirectory
from dslm.run.events import EventName, append_event, event_record, read_events
from dslm.run.manifest import add_attempt, end_attempt, read_manifest

WORKER = "dslm.worker.main"
SCRIPT_WORKER = "dslm.worker.script"
_SCRIPT_GRACE = 0.0  # a script knows nothing of dslm's stop request: it gets SIGTERM at once
_PAUSE_SECONDS = 2.0  # between attempts: sockets and devices of the last one are released
OnEvent = Callable[[dict[str, Any]], None]


class Decide(Protocol):
    """Decides about a training on a cluster, as it goes on with a run of some recipe or anew."""

    def __call__(self, cluster: Cluster, /, *, like: Recipe | None) -> Job: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RankProgram:
    """What the ranks of an attempt execute."""

    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    script: str | None = None
    arguments: tuple[str, ...] = ()
    grace: float = _SCRIPT_GRACE
    watchdog: Watchdog = field(default_factory=Watchdog)
    trust_checkpoint: bool = False


def launch_training(
    fleet: Fleet,
    recipe: LoadedRecipe,
    decide: Decide,
    output: Path | None,
    *,
    master_port: int | None,
    resume: bool,
    trust_checkpoint: bool = False,
    command: Sequence[str],
    on_event: OnEvent,
    on_run: Callable[[Path], None],
) -> tuple[RunDirectory, Outcome]:
    """Train: in a new run directory, or on in an unfinished one; again after a failure.

    Args:
        fleet: where.
        recipe: what is trained, as it was written.
        decide: everything about the training on some cluster; given the recipe of the run that is
            gone on with, if any.
        output: the run directory; None: `runs/RECIPE-TIME`.
        master_port: where the ranks meet; None: a free port.
        resume: there must be an unfinished run in `output`.
        trust_checkpoint: load more of its checkpoint than tensors, which may run code.
        command: the command line, for the manifest.
        on_event: told every event.
        on_run: told the run directory before anything starts.

    Raises:
        InputError: the recipe, an option or the folder is wrong.
        PreflightError: too few hosts are fit.
        DoesNotFit: the plan says so.
    """
    run = unfinished_run(output)
    if run is None and resume:
        raise OptionError(
            "there is no unfinished run to go on with",
            where=Where(file=output, key="--resume"),
            hint="`dslm train RECIPE -o RUN --resume`; `dslm runs list` shows the runs",
        )
    if run is None and trust_checkpoint:
        raise OptionError(
            "there is no unfinished run whose checkpoint would be loaded",
            where=Where(file=output, key="--trust-checkpoint"),
            hint="leave it out: a new run loads none",
        )
    before = read_resolved(run.recipe) if run else None
    folder = run.path if run else (output or default_folder(recipe.name)).absolute()
    shared = recipe.recipe.checkpoint.every is not None  # ranks write checkpoints together
    restarts = 0
    while True:
        port = master_port or free_port()
        decide_on = partial(decide, like=before)
        rendezvous = gather(
            fleet, folder, port, first=restarts == 0, needs_shared=shared,
            needs=partial(_needs, decide_on),
        )  # fmt: skip
        # a restart makes do with fewer; a batch that the named hosts can't share is an error
        job = (
            split(fleet, rendezvous.cluster, decide_on)
            if restarts
            else decide_on(rendezvous.cluster)
        )
        point = None
        if run is None:
            run = make_run(folder, job.name, _files(job), command, job.cluster.hosts)
            on_run(run.path)
        else:
            if restarts == 0:
                check_same_recipe(run, job.recipe)
                on_run(run.path)
            point = _resume(run, job, on_event, trust=trust_checkpoint)
            _write_again(run, job, point)
        if restarts:
            _tell_restart(run, rendezvous, job, point, on_event)
        work = _work(job.recipe, trust_checkpoint)
        outcome, again = _attempt(
            run, job.cluster, rendezvous, fleet, work, port, on_event,
            point=point, restarts_left=fleet.max_restarts - restarts,
        )  # fmt: skip
        if not again:
            return run, outcome
        restarts += 1
        before = job.recipe
        detail = f"{restarts} of {fleet.max_restarts}: {outcome.reason}"
        on_event({"event": EventName.PHASE, "phase": "restarting", "detail": detail})
        time.sleep(_PAUSE_SECONDS)


def launch_script(
    script: Path,
    arguments: Sequence[str],
    fleet: Fleet,
    decide: Callable[..., Job] | None,
    output: Path | None,
    *,
    pass_config: bool,
    master_port: int | None,
    command: Sequence[str],
    on_event: OnEvent,
    on_run: Callable[[Path], None],
) -> tuple[RunDirectory, Outcome]:
    """Run a user's script on every rank, with the same launching and supervision.

    Args:
        script: the Python file.
        arguments: its arguments.
        fleet: where it runs.
        decide: everything about the recipe on some cluster, when one was named: the script is
            given its config.
        output: the run directory; None: `runs/SCRIPT-TIME`.
        pass_config: give the config's path as `--deepspeed PATH` too.
        master_port: where the ranks meet; None: a free port.
        command: the command line, for the manifest.
        on_event: told every event.
        on_run: told the run directory before anything starts.

    Raises:
        OptionError: the folder can't be used.
        PreflightError: a host is not fit.
    """
    folder = (output or default_folder(script.stem)).absolute()
    port = master_port or free_port()
    files_read = (script.absolute(),)
    rendezvous = gather(fleet, folder, port, first=True, needs_shared=False, files=files_read)
    job = decide(rendezvous.cluster) if decide else None
    files: dict[str, Any] = {}
    if job is not None:
        files = {"recipe.yaml": dump_recipe(job.recipe), "ds_config.json": job.config.values}
    run = make_run(folder, script.stem, files, command, rendezvous.cluster.hosts)
    on_run(run.path)
    work = script_work(script, arguments, job, run, pass_config=pass_config)
    outcome, _ = _attempt(run, rendezvous.cluster, rendezvous, fleet, work, port, on_event)
    return run, outcome


def training_request(
    job: Job, fleet: Fleet, output: Path | None, *, master_port: int | None = None
) -> tuple[LaunchRequest, Attempt]:
    """What a training would start, and what its ranks would read; starts and writes nothing."""
    run = RunDirectory((output or default_folder(job.name)).absolute())
    return _preview(run, fleet, _work(job.recipe), master_port)


def script_request(
    script: Path,
    arguments: Sequence[str],
    fleet: Fleet,
    job: Job | None,
    output: Path | None,
    *,
    pass_config: bool,
    master_port: int | None = None,
) -> tuple[LaunchRequest, Attempt]:
    """What a script would be started with; starts and writes nothing."""
    run = RunDirectory((output or default_folder(script.stem)).absolute())
    work = script_work(script, arguments, job, run, pass_config=pass_config)
    return _preview(run, fleet, work, master_port)


def script_work(
    script: Path,
    arguments: Sequence[str],
    job: Job | None,
    run: RunDirectory,
    *,
    pass_config: bool,
) -> RankProgram:
    """A user's script as the ranks execute it."""
    settings = dict(job.recipe.environment) if job else {}
    if job is not None:
        settings[environment.DS_CONFIG] = str(run.ds_config)
    extra = ["--deepspeed", str(run.ds_config)] if pass_config else []
    return RankProgram(
        module=SCRIPT_WORKER,
        environment=settings,
        script=str(script.absolute()),
        arguments=(*arguments, *extra),
    )


def _work(recipe: Recipe, trust_checkpoint: bool = False) -> RankProgram:
    return RankProgram(
        module=WORKER,
        environment=recipe.environment,
        grace=recipe.checkpoint.grace,
        watchdog=recipe.watchdog,
        trust_checkpoint=trust_checkpoint,
    )


def _attempt(
    run: RunDirectory,
    cluster: Cluster,
    rendezvous: Rendezvous,
    fleet: Fleet,
    work: RankProgram,
    port: int,
    on_event: OnEvent,
    *,
    point: ResumePoint | None = None,
    restarts_left: int = 0,
) -> tuple[Outcome, bool]:
    """One attempt, from its entry in the manifest to its end there; whether another follows."""
    number = add_attempt(
        run,
        hosts=named(cluster.hosts),
        resumed_from=point.path if point else None,
        step=point.step if point else 0,
    )
    timeout = work.watchdog.timeout
    hosts = [(host.name, host.slots) for host in cluster.hosts]
    # nobody has to reach it but the ranks
    address = address_towards(rendezvous.master_address) if fleet.remote else LOOPBACK
    with Control(hosts, address=address) as control:
        attempt = _describe(number, cluster, rendezvous, fleet, work, port, control.address())
        attempt.write(run)
        if rendezvous.hosts_without_run_dir:
            send(rendezvous.hosts_without_run_dir, run.path, _copied(run, number), fleet.transport)
        spec = _spec(run, attempt, cluster, rendezvous, work)
        elsewhere = RemoteProcesses(transport=fleet.transport if fleet.remote else None)
        outcome = supervise(
            LAUNCHERS[fleet.launcher](spec),
            run,
            attempt,
            control,
            grace=work.grace,
            limits=Limits(training=None if timeout == "auto" else timeout, join=work.watchdog.join),
            elsewhere=elsewhere,
            on_event=on_event,
        )
    if rendezvous.hosts_without_run_dir:
        fetch(
            rendezvous.hosts_without_run_dir,
            run.path,
            str(run.logs(number).relative_to(run.path)),
            fleet.transport,
        )
    if outcome.status == Status.DONE and work.module == SCRIPT_WORKER:
        append_event(run.events, EventName.END, number, status="done")
    failed = outcome.status == Status.FAILED
    diagnosis = diagnose(run, outcome, elsewhere) if failed else None
    again = restarts_left > 0 and _worth_retrying(outcome, diagnosis)
    _close(run, outcome, diagnosis, again=again)
    return outcome, again


def _needs(decide: Callable[[Cluster], Job], cluster: Cluster) -> int | None:
    """Bytes that a rank needs on its device; None where no plan is known, or none that fits."""
    try:
        plan = decide(cluster).plan
    except (InputError, DoesNotFit):
        return None  # said, with its reason, once the hosts are known
    memory = plan.choice.memory
    return memory.total if memory and plan.fits else None


def _copied(run: RunDirectory, number: int) -> list[str]:
    """What the ranks read of a run directory, relative to it, as far as there is such a file."""
    files = (run.recipe, run.ds_config, run.plan, run.manifest, run.attempt(number))
    return [str(file.relative_to(run.path)) for file in files if file.exists()]


def _describe(
    number: int,
    cluster: Cluster,
    rendezvous: Rendezvous,
    fleet: Fleet,
    work: RankProgram,
    port: int,
    control: ControlAddress,
) -> Attempt:
    """What the ranks are told."""
    settings = dict(work.environment)
    if fleet.remote:  # local ranks inherit the rest
        settings = forwarded(os.environ, work.environment)
    if cluster.device.kind == "cpu":
        settings.setdefault(environment.ACCELERATOR, "cpu")
    return Attempt(
        number=number,
        hosts=tuple((host.name, host.slots) for host in cluster.hosts),
        master_address=rendezvous.master_address,
        master_port=port,
        control=control,
        folder=str(Path.cwd()),
        environment=settings,
        host_environment={
            host: {name: interface for name in environment.INTERFACES if name not in settings}
            for host, interface in rendezvous.interfaces.items()
        },
        hosts_without_run_dir=rendezvous.hosts_without_run_dir,
        script=work.script,
        arguments=work.arguments,
        trust_checkpoint=work.trust_checkpoint,
    )


def _spec(
    run: RunDirectory, attempt: Attempt, cluster: Cluster, rendezvous: Rendezvous, work: RankProgram
) -> LaunchSpec:
    interfaces = set(rendezvous.interfaces.values())
    return LaunchSpec(
        module=work.module,
        cluster=cluster,
        run=run.path,
        attempt=attempt.number,
        master_address=attempt.master_address,
        master_port=attempt.master_port,
        interface=interfaces.pop() if len(interfaces) == 1 else None,
    )


def _preview(
    run: RunDirectory, fleet: Fleet, work: RankProgram, master_port: int | None
) -> tuple[LaunchRequest, Attempt]:
    cluster = fleet.cluster
    address = (
        cluster.hosts[0].address if fleet.remote else Rendezvous(cluster=cluster).master_address
    )
    rendezvous = Rendezvous(cluster=cluster, master_address=address)
    control = ControlAddress(addresses=(), port=0, token="")
    port = master_port or free_port()
    attempt = _describe(1, cluster, rendezvous, fleet, work, port, control)
    return LAUNCHERS[fleet.launcher](_spec(run, attempt, cluster, rendezvous, work)), attempt


def _files(job: Job) -> dict[str, Any]:
    return {
        "recipe.yaml": dump_recipe(job.recipe),
        "ds_config.json": job.config.values,
        "plan.json": plan_document(job),
    }


def _write_again(run: RunDirectory, job: Job, point: ResumePoint | None) -> None:
    """The files of a run for an attempt that may have other hosts than the last one."""
    values = job.config.values
    if point is not None and point.universal:
        section = {**values.get("checkpoint", {}), "load_universal": True}
        values = {**values, "checkpoint": section}
    write_atomic(run.recipe, dump_recipe(job.recipe))
    write_json(run.ds_config, values)
    write_json(run.plan, plan_document(job))


def _resume(run: RunDirectory, job: Job, on_event: OnEvent, *, trust: bool) -> ResumePoint | None:
    """Find where to go on, and tell what was seen on the way."""
    attempt = len(read_manifest(run).attempts) + 1

    def tell(detail: str) -> None:
        _record(run, on_event, EventName.PHASE, attempt, phase="resuming", detail=detail)

    point = resume_point(
        run,
        world_size=job.cluster.world_size,
        zero_stage=job.plan.strategy.zero_stage,
        log=run.logs(attempt) / "convert.log",
        trust=trust,
        tell=tell,
    )
    if point is not None and point.seconds is not None:
        append_event(
            run.events, EventName.CONVERT, attempt, step=point.step, seconds=round(point.seconds, 3)
        )
    return point


def _tell_restart(
    run: RunDirectory,
    rendezvous: Rendezvous,
    job: Job,
    point: ResumePoint | None,
    on_event: OnEvent,
) -> None:
    """Write down why there is another attempt, what was lost, and who takes part in it."""
    events, _ = read_events(run.events)
    step = point.step if point else 0
    reached = max((e.get("step", 0) for e in events if e["event"] == "step"), default=0)
    kept = [e["time"] for e in events if e["event"] == "checkpoint" and e.get("step") == step]
    began = kept[-1] if kept else events[0]["time"] if events else time.time()
    causes = [e.get("message", "") for e in events if e["event"] == "error"]
    _record(
        run,
        on_event,
        EventName.RESTART,
        len(read_manifest(run).attempts) + 1,
        cause=causes[-1] if causes else "",
        step=step,
        lost_steps=max(0, reached - step),
        lost_seconds=round(time.time() - began, 3),
        hosts=[host.name for host in job.cluster.hosts],
        world_size=job.cluster.world_size,
        left_out=[f"{r.host}: {r.check}: {r.detail}" for r in rendezvous.left_out],
    )


def _record(
    run: RunDirectory, on_event: OnEvent, event: EventName, attempt: int, /, **fields: Any
) -> None:
    """Append an event while no attempt is watched, and tell it."""
    append_event(run.events, event, attempt, **fields)
    on_event(event_record(event, attempt, **fields))


def _worth_retrying(outcome: Outcome, diagnosis: Diagnosis | None) -> bool:
    """Whether the same may work the next time: the catalogue knows, else what failed tells."""
    if outcome.status != Status.FAILED or diagnosis is None:
        return False
    return diagnosis.retry if diagnosis.known else outcome.kind != Kind.RANK


def _close(
    run: RunDirectory, outcome: Outcome, diagnosis: Diagnosis | None, *, again: bool
) -> None:
    """Write down how the attempt ended, and what was found to be wrong, unless the disk is full."""
    number = outcome.attempt
    try:
        if diagnosis is not None:
            found = {**diagnosis.fields(), "noticed": outcome.noticed, "again": again}
            append_event(run.events, EventName.ERROR, number, **found)
        elif outcome.status == Status.KILLED:
            append_event(run.events, EventName.END, number, status="killed")
        cause = diagnosis.cause if diagnosis else None
        end_attempt(run, number, status=outcome.status.value, cause=cause)
    except OSError as failure:
        if diagnosis is None or failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
