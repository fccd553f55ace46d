"""A job that may be started, or promised: resolved, and nothing stands against it."""

from __future__ import annotations

from dataclasses import replace

from dslm.ask.profile import OnPhase
from dslm.cluster.hosts import Cluster
from dslm.decide.advice import check_fit
from dslm.decide.checks import facts, versions
from dslm.decide.checks.base import Case, Verb
from dslm.decide.checks.every import Asking, against, refuse
from dslm.decide.job import Job, resolve_job
from dslm.decide.model import model_of
from dslm.decide.room import check_room
from dslm.recipe.load import LoadedRecipe
from dslm.recipe.schema import Recipe

# Where a plan that does not fit is refused; a config is made for somebody else to run.
_MUST_FIT = frozenset({Verb.TRAIN, Verb.PLAN, Verb.BARE, Verb.LAUNCH})
_STARTING = frozenset({Verb.TRAIN, Verb.LAUNCH})


def ready_job(
    loaded: LoadedRecipe,
    cluster: Cluster,
    asking: Asking,
    *,
    resumed: Recipe | None = None,
    on_phase: OnPhase = lambda detail: None,
) -> Job:
    """Resolve a job and ask every check about it.

    Args:
        loaded: the recipe.
        cluster: where it shall run.
        asking: who asks.
        resumed: the recipe of the run that is resumed.
        on_phase: called with each phase that takes a while.

    Raises:
        InputError: with everything that is wrong, each at its place.
        DoesNotFit: the plan says so.
        PreflightError: this machine, where it runs, has too little room for what ranks share.
    """
    case = _case(loaded, cluster, asking)
    refuse(case, asking, loaded)
    job = resolve_job(loaded, cluster, resumed=resumed, on_phase=on_phase)
    planned = replace(case, profile=job.profile, strategy=job.plan.strategy)
    refuse(planned, asking, loaded)
    if asking.here and asking.verb in _STARTING:
        for doubt in versions.doubts(planned):
            on_phase(f"known of this version: {doubt}")
    if asking.verb in _MUST_FIT and asking.device_known and not asking.force:
        check_fit(job)
        if asking.here:
            check_room(job.plan, cluster)
    return job


def refusal(loaded: LoadedRecipe, cluster: Cluster, asking: Asking) -> tuple[str, str] | None:
    """The first check that stands against a recipe, and its words; None: nothing does.

    Raises:
        InputError: no job can be made of it.
    """
    case = _case(loaded, cluster, asking)
    found = next(against(case, asking), None)
    if found is None:
        job = resolve_job(loaded, cluster)
        planned = replace(case, profile=job.profile, strategy=job.plan.strategy)
        found = next(against(planned, asking), None)
    return None if found is None else (found[0].name, found[1].message)


def _case(loaded: LoadedRecipe, cluster: Cluster, asking: Asking) -> Case:
    source = model_of(loaded)
    return Case(
        recipe=loaded.recipe,
        source=source,
        kind=facts.model_type(str(source.architecture.get("model_type"))),
        cluster=cluster,
        here=asking.here,
    )
