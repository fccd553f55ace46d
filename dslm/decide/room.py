"""Whether this machine has room for what a planned training shares and locks in its memory.

Other hosts are asked the same by `dslm.reach.preflight`, in the same words.
"""

from __future__ import annotations

from dslm.cluster.hosts import Cluster
from dslm.errors import PreflightError
from dslm.plan.ledger import Place, placed
from dslm.plan.search import Plan
from dslm.reach import probe
from dslm.reach.checks import SHM, RankNeeds, State, Verdict, locked_memory, shared_memory
from dslm.reach.preflight import NOTHING, hosts_here


def needs_of(plan: Plan) -> RankNeeds:
    """Return what a plan has for a rank; nothing where the model wasn't traced."""
    memory = plan.choice.memory
    if memory is None:
        return NOTHING
    return RankNeeds(
        device=memory.total,
        shared=placed(memory.terms, Place.SHARED),
        locked=placed(memory.terms, Place.LOCKED),
    )


def check_room(plan: Plan, cluster: Cluster) -> None:
    """Check /dev/shm and `ulimit -l` of this machine where it is the only host.

    Raises:
        PreflightError: a plan needs more of them; without it a rank would die in its first step.
    """
    if not hosts_here(cluster.hosts):
        return
    needs = needs_of(plan)
    if needs.shared:
        _refuse(SHM, shared_memory(probe.shared_memory(), needs, cluster.slots_per_host))
    if needs.locked:
        _refuse("locked memory", locked_memory(probe.locked_memory()[0], needs))


def _refuse(name: str, verdict: Verdict) -> None:
    state, detail, fix = verdict
    if state is State.WRONG:
        raise PreflightError(f"{name}: {detail}", hint=fix)
