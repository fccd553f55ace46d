"""The hosts that take part in an attempt, and the address where its ranks meet.

From a fleet, before each attempt, to those of its hosts that passed preflight, in numbers that the
global batch can be split over. Values in, values out; the hosts are asked by `dslm.reach`.
"""

from __future__ import annotations

import itertools
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks.every import Asking
from dslm.decide.job import Job, resolve_job
from dslm.decide.ready import ready_job
from dslm.decide.room import needs_of
from dslm.errors import Finding, InputError, PreflightError, RecipeError, Where
from dslm.launch.control import LOOPBACK
from dslm.lifecycle.fleet import Fleet
from dslm.reach.checks import CheckResult, RankNeeds, wrong
from dslm.reach.preflight import NOTHING, Requirements, ask_hosts, judge_hosts
from dslm.recipe.load import LoadedRecipe
from dslm.recipe.schema import Recipe
from dslm.units import divisors, number_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Hosts of one attempt, named as in the hostfile, and the address where its ranks meet."""

    cluster: Cluster
    master_address: str = LOOPBACK
    interfaces: Mapping[str, str] = field(default_factory=dict)
    hosts_without_run_dir: tuple[str, ...] = ()
    left_out: tuple[CheckResult, ...] = ()  # what was wrong with the others


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The training, as far as it decides which hosts are suitable."""

    recipe: LoadedRecipe
    asking: Asking
    report: Callable[[str], None]  # takes the phases of tracing a model
    resumed: Recipe | None = None  # the resolved recipe of the run that is resumed

    def job(self, cluster: Cluster) -> Job:
        """Return the training on a cluster, with nothing against it.

        Raises:
            InputError: something is; a RecipeError where the global batch can't be split over it.
            DoesNotFit: the plan says so.
        """
        return ready_job(
            self.recipe, cluster, self.asking, resumed=self.resumed, on_phase=self.report
        )

    def needs(self, cluster: Cluster) -> RankNeeds:
        """What a rank needs; nothing where no plan is known, or none that fits."""
        try:
            plan = resolve_job(self.recipe, cluster, resumed=self.resumed).plan
        except InputError:
            return NOTHING  # said, with its reason, once the hosts are known
        return needs_of(plan) if plan.fits else NOTHING


def gather(
    fleet: Fleet,
    requirements: Requirements,
    training: Training | None,
    *,
    all_hosts: bool,
) -> Rendezvous:
    """Return the hosts of an attempt: all of them at first, later those that are fit.

    Args:
        fleet: all hosts.
        requirements: what the run requires of each.
        training: what is trained; None: a script, of which nothing is planned.
        all_hosts: whether every host must be fit.

    Raises:
        PreflightError: too few hosts are.
    """
    cluster, hosts = fleet.cluster, fleet.cluster.hosts
    if not fleet.remote:
        return Rendezvous(cluster=cluster)
    if not fleet.preflight or fleet.site.transport is None:
        return Rendezvous(cluster=cluster, master_address=_resolve(hosts[0]))
    # a launching host without accelerators may still launch onto hosts that have them
    kind = cluster.device.kind if fleet.device_known else None
    requirements = replace(requirements, kind=kind, transport=fleet.site.transport)
    left_out: list[CheckResult] = []
    while hosts:
        asked = ask_hosts(hosts, requirements)
        device = asked.device or cluster.device
        here = replace(cluster, hosts=hosts, device=device)
        needs = training.needs(here) if training and asked.device else NOTHING
        preflight = judge_hosts(asked, needs)
        red = wrong(preflight.results)
        if not red and preflight.master_address is not None:
            return Rendezvous(
                cluster=here,
                master_address=preflight.master_address,
                interfaces=preflight.interfaces,
                hosts_without_run_dir=preflight.hosts_without_run_dir,
                left_out=tuple(left_out),
            )
        left_out += red
        unfit = {result.host for result in red} or {hosts[0].name}
        fit = tuple(host for host in hosts if host.name not in unfit)
        if all_hosts or len(fit) < fleet.min_nodes or not fit:
            raise PreflightError(
                f"{number_of(len(left_out), 'check')} failed on "
                f"{', '.join(dict.fromkeys(result.host for result in left_out))}",
                findings=[_finding(result) for result in left_out],
                hint="`dslm hosts check` shows all of them; `--no-preflight` skips them",
            )
        hosts = fit  # the others again: the master may be another one now
    raise PreflightError("no host is left")


def largest_job(training: Training, fit: Cluster, min_nodes: int) -> Job:
    """Return the training on the largest part of a cluster that it can be resolved for.

    Where ranks share layers, sequences or experts and no part has as many, fewer of them do.

    Raises:
        RecipeError: no part will do; what was wrong with the largest.
    """
    refusal: RecipeError | None = None
    for sharing, some in itertools.product(
        _sharing_less(training.recipe), tuple(_smaller_and_smaller(fit.hosts, min_nodes))
    ):
        try:
            return replace(training, recipe=sharing).job(replace(fit, hosts=some))
        except RecipeError as failure:
            refusal = refusal or failure
    raise refusal or RecipeError("no host is left")


def _sharing_less(loaded: LoadedRecipe) -> Iterator[LoadedRecipe]:
    """A recipe, then the same with fewer ranks that share, down to none."""
    parallel = loaded.recipe.parallel
    asked = (parallel.tensor, parallel.sequence, parallel.expert)
    sizes = [divisors(size)[::-1] if isinstance(size, int) else [size] for size in asked]
    every = list(itertools.product(*sizes))
    every.sort(key=lambda each: -math.prod(size for size in each if isinstance(size, int)))
    for tensor, sequence, expert in every:
        update = {"tensor": tensor, "sequence": sequence, "expert": expert}
        changed = parallel.model_copy(update=update)
        recipe = loaded.recipe.model_copy(update={"parallel": changed})
        yield replace(loaded, recipe=recipe)


def _smaller_and_smaller(hosts: Sequence[Host], fewest: int) -> Iterator[tuple[Host, ...]]:
    """All hosts with all slots, then fewer hosts, then fewer slots on each."""
    most = max(host.slots for host in hosts)
    for slots in range(most, 0, -1):
        cut = tuple(
            replace(host, slots=min(host.slots, slots), devices=host.devices[:slots])
            for host in hosts
        )
        for count in range(len(cut), fewest - 1, -1):
            yield cut[:count]


def _finding(result: CheckResult) -> Finding:
    return Finding(
        message=f"{result.check}: {result.detail}", where=Where(key=result.host), hint=result.fix
    )


def _resolve(host: Host) -> str:
    """Look up a host's address without asking the host itself.

    Raises:
        PreflightError: its name isn't known here, or is a loopback address.
    """
    try:
        address = socket.gethostbyname(host.address)
    except OSError as failure:
        raise PreflightError(
            f"the name of {host.name} can't be resolved: {failure}",
            hint="leave out `--no-preflight`: the host is asked for its address then",
        ) from failure
    if address.startswith("127."):
        raise PreflightError(
            f"{host.name} resolves to {address}, where no other host can reach it",
            hint="give its address in the hostfile, or leave out `--no-preflight`",
        )
    return address
