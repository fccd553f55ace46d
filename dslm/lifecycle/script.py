"""A user's own script on every rank, launched and supervised as a training is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dslm import environment
from dslm.ask.hub import hub_remarks
from dslm.cluster.hosts import Cluster
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.job import Job, check_port
from dslm.decide.made_for import made_for_others
from dslm.decide.passed import Passed, pass_on
from dslm.decide.ready import ready_job
from dslm.errors import OptionError, Where
from dslm.host.network import free_port
from dslm.lifecycle.attempt import AttemptPlan, RankProgram, preview, run_attempt
from dslm.lifecycle.folder import check_output, default_folder, make_run
from dslm.lifecycle.owned import owned_run
from dslm.lifecycle.rendezvous import gather
from dslm.lifecycle.request import Ended, Listener, Preview, ScriptRequest
from dslm.reach.preflight import Requirements
from dslm.recipe.load import dump_recipe
from dslm.run.directory import RunDirectory

_WORKER = "dslm.worker.script"


def run_script(request: ScriptRequest, listener: Listener) -> Ended:
    """Run a script on every rank, once.

    Raises:
        InputError: the recipe, an option or the folder is wrong.
        PreflightError: a host is not fit.
    """
    if not request.fleet.remote:
        check_port(request.master_port)
    with owned_run(_folder(request), listener) as run:
        return _run_once(request, run, listener)


def _run_once(request: ScriptRequest, run: RunDirectory, listener: Listener) -> Ended:
    port = request.master_port or free_port()
    requirements = Requirements(
        run=run.path, port=port, needs_shared=False, files=(request.script.absolute(),)
    )
    rendezvous = gather(request.fleet, requirements, None, all_hosts=True)
    job = _job(request, rendezvous.cluster, listener.note)
    passed = _passed(request, job)
    files: dict[str, object] = {}
    if job is not None and passed is not None:
        files = {"recipe.yaml": dump_recipe(job.recipe), "ds_config.json": passed.config}
    hosts = rendezvous.cluster.hosts
    make_run(run.path, request.script.stem, files, request.command, hosts)
    listener.run_made(run.path)
    for line in (*_said(request, passed), made_for_others(request.arguments, rendezvous.cluster)):
        if line:
            listener.note(line)
    plan = AttemptPlan(
        fleet=request.fleet,
        rendezvous=rendezvous,
        program=_program(request, job, passed, run),
        port=port,
    )
    outcome, _ = run_attempt(run, plan, listener)
    return Ended(run=run, outcome=outcome)


def preview_script(request: ScriptRequest, report: Callable[[str], None]) -> Preview:
    """Build everything that a script would be started with; starts and writes nothing."""
    if not request.fleet.remote:
        check_port(request.master_port)
    job = _job(request, request.fleet.cluster, report, device_known=request.fleet.device_known)
    other = made_for_others(request.arguments, request.fleet.cluster)
    remarks = [other] if other else []
    remarks += hub_remarks(job.recipe, report) if job is not None else []
    run = RunDirectory(_folder(request))
    port = request.master_port or free_port()
    check_output(run.path)
    passed = _passed(request, job)
    program = _program(request, job, passed, run)
    if job is not None and passed is not None:
        job = replace(job, config=replace(job.config, values=dict(passed.config)))
    started, attempt = preview(run, request.fleet, program, port)
    return Preview(request=started, attempt=attempt, job=job, remarks=tuple(remarks))


def _passed(request: ScriptRequest, job: Job | None) -> Passed | None:
    """Derive the script's arguments from the recipe; None without a recipe.

    Raises:
        OptionError: the script can't be read.
    """
    if job is None:
        return None
    if not request.pass_config:
        return Passed(arguments=(), config=job.config.values)
    try:
        text = request.script.read_text(encoding="utf-8", errors="replace")
    except OSError as failure:
        raise OptionError(
            f"the script can't be read: {failure.strerror}", where=Where(file=request.script)
        ) from failure
    return pass_on(text, request.arguments, job)


def _said(request: ScriptRequest, passed: Passed | None) -> list[str]:
    """Which values the script has from where, in a line each."""
    if passed is None or request.recipe is None:
        return []
    lines = []
    if passed.arguments:
        lines.append(f"from {request.recipe.name}: {' '.join(passed.arguments)}")
    if passed.yours:
        names = " ".join(f"--{name}" for name in passed.yours)
        lines.append(f"from your command line, before the recipe's: {names}")
    return lines


def _job(
    request: ScriptRequest,
    cluster: Cluster,
    report: Callable[[str], None],
    *,
    device_known: bool = True,
) -> Job | None:
    if request.recipe is None:
        return None
    asking = Asking(verb=Verb.LAUNCH, force=request.force, device_known=device_known)
    return ready_job(request.recipe, cluster, asking, on_phase=report)


def _folder(request: ScriptRequest) -> Path:
    return (request.output or default_folder(request.script.stem)).absolute()


def _program(
    request: ScriptRequest, job: Job | None, passed: Passed | None, run: RunDirectory
) -> RankProgram:
    """The script as ranks execute it: it knows no request to stop, so it gets SIGTERM at once."""
    settings = dict(job.recipe.environment) if job else {}
    if job is not None:
        settings[environment.DS_CONFIG] = str(run.ds_config)
    if job is not None and job.cluster.device.kind == "cpu":
        settings.setdefault(environment.ACCELERATE_CPU, "true")
    extra = ("--deepspeed", str(run.ds_config)) if request.pass_config else ()
    return RankProgram(
        module=_WORKER,
        environment=settings,
        script=str(request.script.absolute()),
        arguments=(*request.arguments, *(passed.arguments if passed else ()), *extra),
    )
