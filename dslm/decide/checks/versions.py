"""Checks on installed versions: known to learn something else with what a recipe sets."""

from __future__ import annotations

from collections.abc import Iterator

from dslm.cluster.hosts import Cluster
from dslm.cluster.wrong_versions import Setting, WrongVersion, installed_wrong
from dslm.decide.checks.base import STARTING, Case, Check, Problem, Verb
from dslm.decide.job import Job
from dslm.decide.model import ModelSource, model_of
from dslm.plan.strategy import Strategy
from dslm.recipe.features import quantizes_weights
from dslm.recipe.schema import Recipe
from dslm.zero.generate import leaves

_MAY = "guards.on_trouble"


def setting_of(
    recipe: Recipe, strategy: Strategy, cluster: Cluster, source: ModelSource
) -> Setting:
    """Return what is trained, as wrong versions see it."""
    on_cpu = cluster.device.kind == "cpu"
    return Setting(
        stage=strategy.zero_stage,
        precision=recipe.precision,
        ranks=cluster.world_size,
        tensor=strategy.tensor_parallel,
        offload=strategy.offload,
        accumulates=strategy.gradient_accumulation_steps > 1,
        clips=recipe.optimizer.grad_clip > 0,
        on_cpu=on_cpu,
        compile=recipe.model.compile,
        liger=recipe.model.liger is True or (recipe.model.liger == "auto" and not on_cpu),
        zeropp=quantizes_weights(recipe),
        pretrained=recipe.model.init == "pretrained",
        task=recipe.task,
        optimizer=recipe.optimizer.name,
        model_type=str(source.architecture.get("model_type", "")),
        deepspeed=dict(leaves(recipe.deepspeed)) if recipe.deepspeed else {},
    )


def met(setting: Setting) -> Iterator[tuple[WrongVersion, str]]:
    """Find the known wrong versions that are installed and that a training meets."""
    return ((entry, release) for entry, release in installed_wrong() if entry.when.meets(setting))


def _met_by(case: Case) -> Iterator[tuple[WrongVersion, str]]:
    """As `met`, of a recipe; none before it is planned."""
    if case.strategy is not None:
        yield from met(setting_of(case.recipe, case.strategy, case.cluster, case.source))


def said(entry: WrongVersion, release: str) -> str:
    """Say what is wrong with a version, in a sentence."""
    also = f" ({entry.also})" if entry.also else ""
    return f"{entry.package} {release}: {entry.wrong}{also}; {entry.source}"


def doubts(case: Case) -> list[str]:
    """Say what a recipe may meet and isn't refused for."""
    may = case.recipe.guards.on_trouble == "warn"
    return [said(entry, release) for entry, release in _met_by(case) if entry.also or may]


def known_of(job: Job) -> tuple[str, ...]:
    """Say which known mistakes of installed versions a resolved job meets."""
    setting = setting_of(job.recipe, job.plan.strategy, job.cluster, model_of(job.asked))
    return tuple(said(entry, release) for entry, release in met(setting))


def _known_wrong(case: Case) -> Iterator[Problem]:
    if case.recipe.guards.on_trouble == "warn":
        return
    for entry, release in _met_by(case):
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
        looks_at="installed packages, parallel, precision, batch, model, optimizer",
        judge=_known_wrong,
        verbs=STARTING - {Verb.VERIFY},  # which is there to find out
        planned=True,
        of_machine=True,
    ),
)
