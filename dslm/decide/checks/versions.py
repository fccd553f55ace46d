"""Checks on installed versions: known to learn something else with what a recipe sets."""

from __future__ import annotations

from collections.abc import Iterator

from dslm.cluster.wrong_versions import Setting, WrongVersion, installed_wrong
from dslm.decide.checks.base import STARTING, Case, Check, Problem, Verb
from dslm.decide.job import Job
from dslm.decide.model import model_of
from dslm.recipe.features import quantizes_weights
from dslm.zero.generate import leaves

_MAY = "guards.on_trouble"


def setting_of(case: Case) -> Setting | None:
    """Return what is trained, as wrong versions see it; None before it is planned."""
    recipe, strategy = case.recipe, case.strategy
    if strategy is None:
        return None
    return Setting(
        stage=strategy.zero_stage,
        precision=recipe.precision,
        ranks=case.cluster.world_size,
        offload=strategy.offload,
        accumulates=strategy.gradient_accumulation_steps > 1,
        on_cpu=case.on_cpu,
        compile=recipe.model.compile,
        liger=recipe.model.liger is True or (recipe.model.liger == "auto" and not case.on_cpu),
        zeropp=quantizes_weights(recipe),
        pretrained=recipe.model.init == "pretrained",
        task=recipe.task,
        optimizer=recipe.optimizer.name,
        model_type=str(case.architecture.get("model_type", "")),
        deepspeed=dict(leaves(recipe.deepspeed)) if recipe.deepspeed else {},
    )


def met(case: Case) -> Iterator[tuple[WrongVersion, str]]:
    """Find the known wrong versions that are installed and that a planned recipe meets."""
    setting = setting_of(case)
    if setting is not None:
        yield from (
            (entry, release) for entry, release in installed_wrong() if entry.when.meets(setting)
        )


def said(entry: WrongVersion, release: str) -> str:
    """Say what is wrong with a version, in a sentence."""
    also = f" ({entry.also})" if entry.also else ""
    return f"{entry.package} {release}: {entry.wrong}{also}; {entry.source}"


def doubts(case: Case) -> list[str]:
    """Say what a recipe may meet and isn't refused for."""
    may = case.recipe.guards.on_trouble == "warn"
    return [said(entry, release) for entry, release in met(case) if entry.also or may]


def known_of(job: Job) -> tuple[str, ...]:
    """Say which known mistakes of installed versions a resolved job meets."""
    source = model_of(job.asked)
    case = Case(
        recipe=job.recipe,
        source=source,
        kind=None,
        cluster=job.cluster,
        here=True,
        profile=job.profile,
        strategy=job.plan.strategy,
    )
    return tuple(said(entry, release) for entry, release in met(case))


def _known_wrong(case: Case) -> Iterator[Problem]:
    if case.recipe.guards.on_trouble == "warn":
        return
    for entry, release in met(case):
        if not entry.also:
            key = entry.avoid.partition("=")[0]
            yield Problem(
                key=key,
                message=said(entry, release),
                hint=f"{entry.way_out}; `--set {_MAY}=warn` trains all the same",
            )


CHECKS = (
    Check(
        name="versions that learn what one process would",
        looks_at="installed packages, parallel, precision, batch, model",
        judge=_known_wrong,
        verbs=STARTING - {Verb.VERIFY},  # which is there to find out
        planned=True,
        of_machine=True,
    ),
)
