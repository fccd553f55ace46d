"""A whole run: make its directory, launch it, say how it ended.

The edge between deciding (`dslm.launch.job`) and watching (`dslm.launch.supervise`).
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dslm import environment
from dslm.cluster.hosts import Cluster
from dslm.errors import OptionError, Where
from dslm.files import write_atomic, write_json
from dslm.launch.backends import local
from dslm.launch.diagnose import diagnose
from dslm.launch.job import Job, plan_document
from dslm.launch.ports import free_port
from dslm.launch.resume import ResumePoint, check_same_recipe, resume_point, unfinished_run
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.launch.supervise import Outcome, Status, supervise
from dslm.recipe.load import dump_recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import EventName, append_event
from dslm.run.manifest import add_attempt, end_attempt, new_manifest, read_manifest

WORKER = "dslm.worker.main"
SCRIPT_WORKER = "dslm.worker.script"
_SCRIPT_GRACE = 0.0  # a script knows nothing of dslm's stop request: it gets SIGTERM at once
OnEvent = Callable[[dict[str, Any]], None]


def launch_training(
    job: Job,
    output: Path | None,
    *,
    master_port: int | None,
    resume: bool,
    command: Sequence[str],
    on_event: OnEvent,
    on_run: Callable[[Path], None],
) -> tuple[RunDirectory, Outcome]:
    """Train: in a new run directory, or on in an unfinished one of the same recipe.

    Args:
        job: what was decided.
        output: the run directory; None: `runs/RECIPE-TIME`.
        master_port: where the ranks meet; None: a free port.
        resume: there must be an unfinished run in `output`.
        command: the command line, for the manifest.
        on_event: told every event.
        on_run: told the run directory before anything starts.

    Raises:
        OptionError: the folder can't be used.
    """
    run = unfinished_run(output)
    values, point = job.config.values, None
    if run is None:
        if resume:
            raise OptionError(
                "there is no unfinished run to go on with",
                where=Where(file=output, key="--resume"),
                hint="`dslm train RECIPE -o RUN --resume`; `dslm runs list` shows the runs",
            )
        files = {
            "recipe.yaml": dump_recipe(job.recipe),
            "ds_config.json": values,
            "plan.json": plan_document(job),
        }
        folder = output or _default_folder(job.name)
        run = make_run(folder, job.name, files, command, job.cluster)
        on_run(run.path)
    else:
        check_same_recipe(run, job.recipe)
        on_run(run.path)
        point = _resume(run, job, on_event)
        if point is not None and point.universal:
            values = {**values, "checkpoint": {"load_universal": True}}
        write_atomic(run.recipe, dump_recipe(job.recipe))
        write_json(run.ds_config, values)
    attempt = add_attempt(
        run,
        world_size=job.cluster.world_size,
        resumed_from=point.path if point else None,
        step=point.step if point else 0,
    )
    request = request_of(job, run.path, attempt=attempt, master_port=master_port)
    outcome = supervise(
        request,
        run,
        attempt=attempt,
        world_size=job.cluster.world_size,
        grace=job.recipe.checkpoint.grace,
        on_event=on_event,
    )
    _close(run, outcome)
    return run, outcome


def _resume(run: RunDirectory, job: Job, on_event: OnEvent) -> ResumePoint | None:
    """Find where to go on, and tell what was seen on the way."""
    attempt = len(read_manifest(run)["attempts"]) + 1

    def tell(detail: str) -> None:
        append_event(run.events, EventName.PHASE, attempt, phase="resuming", detail=detail)
        on_event({"event": "phase", "phase": "resuming", "detail": detail})

    point = resume_point(
        run,
        world_size=job.cluster.world_size,
        zero_stage=job.plan.strategy.zero_stage,
        log=run.logs(attempt) / "convert.log",
        on_convert=lambda checkpoint: tell(
            f"converting step {checkpoint.step} from {checkpoint.world_size} ranks to "
            f"{job.cluster.world_size}"
        ),
    )
    if point is not None and point.seconds is not None:
        append_event(
            run.events, EventName.CONVERT, attempt, step=point.step, seconds=round(point.seconds, 3)
        )
    for problem in point.problems if point else ():
        tell(problem)
    return point


def launch_script(
    script: Path,
    arguments: Sequence[str],
    cluster: Cluster,
    job: Job | None,
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
        cluster: where it runs.
        job: what a recipe decided, when one was named: its config is given to the script.
        output: the run directory; None: `runs/SCRIPT-TIME`.
        pass_config: give the config's path as `--deepspeed PATH` too.
        master_port: where the ranks meet; None: a free port.
        command: the command line, for the manifest.
        on_event: told every event.
        on_run: told the run directory before anything starts.

    Raises:
        OptionError: the folder can't be used.
    """
    files: dict[str, Any] = {}
    if job is not None:
        files = {"recipe.yaml": dump_recipe(job.recipe), "ds_config.json": job.config.values}
    folder = output or _default_folder(script.stem)
    run = make_run(folder, script.stem, files, command, cluster)
    on_run(run.path)
    attempt = add_attempt(run, world_size=cluster.world_size)
    request = script_request(
        script,
        arguments,
        cluster,
        job,
        run.path,
        attempt=attempt,
        pass_config=pass_config,
        master_port=master_port,
    )
    outcome = supervise(
        request,
        run,
        attempt=attempt,
        world_size=cluster.world_size,
        grace=_SCRIPT_GRACE,
        on_event=on_event,
    )
    if outcome.status == Status.DONE:
        append_event(run.events, EventName.END, attempt, status="done")
    _close(run, outcome)
    return run, outcome


def request_of(
    job: Job, output: Path | None, *, attempt: int = 1, master_port: int | None = None
) -> LaunchRequest:
    """The command of a training; starts nothing."""
    return local.request(
        LaunchSpec(
            module=WORKER,
            cluster=job.cluster,
            run=(output or _default_folder(job.name)).absolute(),
            attempt=attempt,
            master_port=master_port or free_port(),
            environment=job.recipe.environment,
        )
    )


def script_request(
    script: Path,
    arguments: Sequence[str],
    cluster: Cluster,
    job: Job | None,
    output: Path | None,
    *,
    pass_config: bool,
    attempt: int = 1,
    master_port: int | None = None,
) -> LaunchRequest:
    """The command of a user's script; starts nothing."""
    run = RunDirectory((output or _default_folder(script.stem)).absolute())
    settings = dict(job.recipe.environment) if job else {}
    if job is not None:
        settings[environment.DS_CONFIG] = str(run.ds_config)
    extra = ["--deepspeed", str(run.ds_config)] if pass_config else []
    return local.request(
        LaunchSpec(
            module=SCRIPT_WORKER,
            arguments=(str(script.absolute()), *arguments, *extra),
            cluster=cluster,
            run=run.path,
            attempt=attempt,
            master_port=master_port or free_port(),
            environment=settings,
        )
    )


def make_run(
    folder: Path, name: str, files: Mapping[str, Any], command: Sequence[str], cluster: Cluster
) -> RunDirectory:
    """Make a run directory with its files, or nothing at all.

    Raises:
        OptionError: the folder holds something, can't be made, or the disk is full.
    """
    run = RunDirectory(folder.absolute())
    check_output(run.path)
    hosts = [{"host": host.name, "slots": host.slots} for host in cluster.hosts]
    manifest = new_manifest(name=name, command=command, hosts=hosts)
    made = [p for p in (run.path, *run.path.parents) if not p.exists()]
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        # beside its final place, so that it appears whole, with one rename
        staging = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.", dir=run.path.parent))
        try:
            staging.chmod(0o755)
            for file, content in {**files, "manifest.json": manifest}.items():
                if isinstance(content, str):
                    write_atomic(staging / file, content)
                else:
                    write_json(staging / file, content)
            staging.replace(run.path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except OSError as failure:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise OptionError(
            f"the run directory can't be written: {failure.strerror}",
            where=Where(file=folder),
            hint="choose another with `-o DIR`",
        ) from failure
    return run


def check_output(path: Path) -> None:
    """Check that a new run may be made in a folder: it is not there, or empty.

    Raises:
        OptionError: it holds something.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise OptionError("is a file, not a folder", where=Where(file=path))
    if (path / "manifest.json").is_file():
        raise OptionError(
            "holds another run",
            where=Where(file=path),
            hint="it is done, or was not made by `dslm train`: choose another with `-o DIR`",
        )
    if any(path.iterdir()):
        raise OptionError(
            "the folder is not empty", where=Where(file=path), hint="choose another with `-o DIR`"
        )


def _default_folder(name: str) -> Path:
    """`runs/NAME-TIME`, with a number when two start in one second."""
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def _close(run: RunDirectory, outcome: Outcome) -> None:
    """Write down how the attempt ended, and what was found to be wrong, unless the disk is full."""
    try:
        _write_down(run, outcome)
    except OSError as failure:
        if outcome.status != Status.FAILED or failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _write_down(run: RunDirectory, outcome: Outcome) -> None:
    cause = None
    if outcome.status == Status.FAILED:
        diagnosis = diagnose(run, outcome)
        cause = diagnosis.cause
        append_event(run.events, EventName.ERROR, outcome.attempt, **diagnosis.fields())
    elif outcome.status == Status.KILLED:
        append_event(run.events, EventName.END, outcome.attempt, status="killed")
    end_attempt(run, outcome.attempt, status=outcome.status.value, cause=cause)
