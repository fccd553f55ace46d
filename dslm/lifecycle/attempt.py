"""One attempt of a run: its ranks' instructions, its start, its end and the reason.

The edge between a plan of an attempt, which is a value, and watching it (`dslm.launch.supervise`).
Knows nothing of recipes and of what another attempt would change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dslm import environment
from dslm.diagnose.explain import Diagnosis, diagnose
from dslm.files import is_full
from dslm.host.network import address_towards
from dslm.launch.control import LOOPBACK, Control
from dslm.launch.outcome import Outcome, Status
from dslm.launch.remote_processes import RemoteProcesses
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.launch.supervise import supervise
from dslm.launch.watchdog import Limits
from dslm.lifecycle.fleet import Fleet
from dslm.lifecycle.folder import named
from dslm.lifecycle.forward import forwarded
from dslm.lifecycle.rendezvous import Rendezvous
from dslm.lifecycle.request import Listener
from dslm.lifecycle.resume import ResumePoint
from dslm.reach.copies import fetch, send
from dslm.recipe.schema import Watchdog
from dslm.run.attempt import Attempt, ControlAddress
from dslm.run.checkpoints import remove_leftovers
from dslm.run.directory import RunDirectory
from dslm.run.documents import PlanFile, find_document
from dslm.run.endings import Kind
from dslm.run.events import End, stamp, write_event
from dslm.run.manifest import add_attempt, end_attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class RankProgram:
    """The program that the ranks of an attempt execute."""

    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    script: str | None = None
    arguments: tuple[str, ...] = ()
    grace: float = 0.0  # between the request to stop and the end of all processes
    watchdog: Watchdog = field(default_factory=Watchdog)
    trust_checkpoint: bool = False
    probe_steps: int = 0  # after which it ends; 0: it trains to the end


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptPlan:
    """One attempt before it starts."""

    fleet: Fleet
    rendezvous: Rendezvous
    program: RankProgram
    port: int
    start: ResumePoint | None = None
    restarts_left: int = 0

    @property
    def hosts(self) -> tuple[tuple[str, int], ...]:
        """Hosts and their ranks, in the order of the ranks."""
        return tuple((host.name, host.slots) for host in self.rendezvous.cluster.hosts)


def run_attempt(run: RunDirectory, plan: AttemptPlan, listener: Listener) -> tuple[Outcome, bool]:
    """Run one attempt, from its entry in the manifest to its end there.

    Returns:
        How it ended, and whether another attempt may do better.
    """
    number = add_attempt(
        run,
        hosts=named(plan.rendezvous.cluster.hosts),
        resumed_from=plan.start.path if plan.start else None,
        step=plan.start.step if plan.start else 0,
    )
    remote = plan.fleet.remote
    processes = RemoteProcesses(transport=plan.fleet.site.transport)
    timeout = plan.program.watchdog.timeout
    # nobody has to reach it but the ranks
    address = address_towards(plan.rendezvous.master_address) if remote else LOOPBACK
    with Control(plan.hosts, address=address) as control:
        attempt = describe(number, plan, control.address())
        attempt.write(run)
        _send_files(run, number, plan)
        outcome = supervise(
            plan.fleet.site.request(launch_spec(run, attempt, plan)),
            run,
            attempt,
            control,
            grace=plan.program.grace,
            limits=Limits(
                training=None if timeout == "auto" else timeout,
                join=plan.program.watchdog.join,
                planned_step=_planned_step(run),
            ),
            remote=processes,
            on_event=listener.event,
        )
    _fetch_logs(run, number, plan)
    if outcome.status == Status.DONE and plan.program.script is not None:
        write_event(run.events, End(**stamp(number), status="done"))
    failed = outcome.status == Status.FAILED
    diagnosis = diagnose(run, outcome, processes) if failed else None
    again = plan.restarts_left > 0 and _worth_retrying(outcome, diagnosis)
    if outcome.status != Status.DONE:
        remove_leftovers(run.checkpoints)  # also to have space for what is written down now
    _close(run, outcome, diagnosis, again=again)
    return outcome, again


def _planned_step(run: RunDirectory) -> float | None:
    """Return the seconds that the plan gives a step; None for a script."""
    planned = find_document(PlanFile, run.plan)
    return planned.time.step_seconds if planned is not None and planned.time is not None else None


def preview(
    run: RunDirectory, fleet: Fleet, program: RankProgram, port: int
) -> tuple[LaunchRequest, Attempt]:
    """Build the request and the attempt's file without starting or writing anything."""
    rendezvous = Rendezvous(cluster=fleet.cluster)
    if fleet.remote:
        address = fleet.cluster.hosts[0].address
        rendezvous = Rendezvous(cluster=fleet.cluster, master_address=address)
    plan = AttemptPlan(fleet=fleet, rendezvous=rendezvous, program=program, port=port)
    attempt = describe(1, plan, ControlAddress(addresses=(), port=0, token=""))
    return fleet.site.request(launch_spec(run, attempt, plan)), attempt


def describe(number: int, plan: AttemptPlan, control: ControlAddress) -> Attempt:
    """Describe the attempt for its ranks."""
    program, rendezvous, site = plan.program, plan.rendezvous, plan.fleet.site
    settings = dict(program.environment)
    if site.remote:  # local ranks inherit the rest
        settings = forwarded(os.environ, program.environment)
    if rendezvous.cluster.device.kind == "cpu":
        settings.setdefault(environment.ACCELERATOR, "cpu")
    return Attempt(
        number=number,
        hosts=plan.hosts,
        master_address=rendezvous.master_address,
        master_port=plan.port,
        control=control,
        folder=str(Path.cwd()),
        environment=settings,
        host_environment={
            host: {name: interface for name in environment.INTERFACES if name not in settings}
            for host, interface in rendezvous.interfaces.items()
        },
        hosts_without_run_dir=rendezvous.hosts_without_run_dir,
        rank_variables=site.rank_variables,
        stopped_by_signal=site.terminates_ranks,
        script=program.script,
        arguments=program.arguments,
        trust_checkpoint=program.trust_checkpoint,
        probe_steps=program.probe_steps,
    )


def launch_spec(run: RunDirectory, attempt: Attempt, plan: AttemptPlan) -> LaunchSpec:
    """Describe the attempt for a site."""
    interfaces = set(plan.rendezvous.interfaces.values())
    return LaunchSpec(
        module=plan.program.module,
        cluster=plan.rendezvous.cluster,
        run=run.path,
        attempt=attempt.number,
        master_address=attempt.master_address,
        master_port=attempt.master_port,
        interface=interfaces.pop() if len(interfaces) == 1 else None,
    )


def _send_files(run: RunDirectory, number: int, plan: AttemptPlan) -> None:
    """Copy what the ranks read of a run directory to the hosts that don't see it."""
    hosts, transport = plan.rendezvous.hosts_without_run_dir, plan.fleet.site.transport
    if hosts and transport is not None:
        files = (
            run.recipe, run.ds_config, run.plan, run.manifest, run.skipped, run.attempt(number),
        )  # fmt: skip
        names = [str(file.relative_to(run.path)) for file in files if file.exists()]
        send(hosts, run.path, names, transport)


def _fetch_logs(run: RunDirectory, number: int, plan: AttemptPlan) -> None:
    hosts, transport = plan.rendezvous.hosts_without_run_dir, plan.fleet.site.transport
    if hosts and transport is not None:
        fetch(hosts, run.path, str(run.logs(number).relative_to(run.path)), transport)


def _worth_retrying(outcome: Outcome, diagnosis: Diagnosis | None) -> bool:
    """Return whether a retry may work: the catalogue knows, or else the kind of failure."""
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
            write_event(run.events, diagnosis.event(number, noticed=outcome.noticed, again=again))
        elif outcome.status == Status.KILLED:
            write_event(run.events, End(**stamp(number), status="killed"))
        cause = diagnosis.cause if diagnosis else None
        end_attempt(run, number, status=outcome.status.value, cause=cause)
    except OSError as failure:
        if diagnosis is None or not is_full(failure):
            raise
