"""From a recipe to a job that is ready to launch: recipe → cluster → plan → DeepSpeed config.

Everything here is decided before anything is written or started, so every kind of bad input ends
here. What comes out is a value; `dslm.launch.supervise` is what runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dslm.ask.hub import hub_config
from dslm.ask.profile import OnPhase, profile_of
from dslm.cluster.hosts import Cluster
from dslm.codec import Json
from dslm.decide.checks.layout import permits_of
from dslm.decide.model import ModelSource, model_of, read_config
from dslm.errors import DataError, OptionError, RecipeError, Where
from dslm.plan.report import document
from dslm.plan.runnable import Permits
from dslm.plan.search import Plan, choose, traced
from dslm.plan.strategy import settled
from dslm.presets import ANY_MODEL
from dslm.profile.value import Profile
from dslm.recipe.data_paths import check_data
from dslm.recipe.extras import check_extras
from dslm.recipe.load import LoadedRecipe, load_recipe
from dslm.recipe.long_context import leave_out, parts_on, switch_on, unproved
from dslm.recipe.schema import Recipe
from dslm.run.documents import FORMAT
from dslm.secrets import HINT, find_in_arguments
from dslm.zero.generate import ResolvedConfig, generate
from dslm.zero.lint import lint

_SAMPLE = 1024  # tokens of a sample, unless the recipe says another number
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TASKS = {
    "ForMaskedLM": "mlm",
    "ForSequenceClassification": "classify",
    "ForImageClassification": "vision",
    "ForCausalLM": "pretrain",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training, resolved: what was asked for, and what of it runs where, how planned."""

    asked: LoadedRecipe  # with the place of each key, for what is found wrong later
    recipe: Recipe
    cluster: Cluster
    profile: Profile | None
    untraced: str  # why the model's passes aren't known; empty where they are
    plan: Plan
    config: ResolvedConfig
    permits: Permits  # which sizes of shared work the model can be trained with
    left_out: Mapping[str, str]  # keys of savings that long samples would want, and why not here

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.asked.name


def resolve_job(
    loaded: LoadedRecipe,
    cluster: Cluster,
    *,
    resumed: Recipe | None = None,
    on_phase: OnPhase = lambda detail: None,
) -> Job:
    """Resolve one training on a cluster; a model that no profile is known of is traced.

    Args:
        loaded: the recipe, as it was asked for.
        cluster: where it runs.
        resumed: the resolved recipe of the run that is resumed: its stage stays unless the recipe
            says another, since a checkpoint's optimizer state belongs to a stage.
        on_phase: called with each phase that takes a while.

    Raises:
        InputError: the recipe or the model folder is wrong.
    """
    source = model_of(loaded)
    try:
        return _resolve(loaded, cluster, source, resumed, on_phase)
    except RecipeError as failure:
        if failure.where.file is not None or failure.where.key is None:
            raise
        raise RecipeError(
            failure.message,
            where=loaded.where(failure.where.key),
            hint=failure.hint,
            findings=failure.findings,
        ) from failure


def _resolve(
    loaded: LoadedRecipe,
    cluster: Cluster,
    source: ModelSource,
    resumed: Recipe | None,
    on_phase: OnPhase,
) -> Job:
    recipe = loaded.recipe
    if resumed is not None and recipe.parallel.zero_stage == "auto":
        kept = recipe.parallel.model_copy(update={"zero_stage": resumed.parallel.zero_stage})
        recipe = recipe.model_copy(update={"parallel": kept})
    asked = recipe
    recipe, left_out = switch_on(recipe, on_cpu=cluster.device.kind == "cpu")
    profile, untraced = _profile(recipe, source, cluster, on_phase)
    impossible = profile.left_out if traced(profile) else unproved(recipe, asked, untraced)
    recipe = leave_out(recipe, asked, impossible)
    permits = permits_of(source)
    plan = choose(recipe, cluster, profile, permits)
    config = generate(_with_second(recipe, plan), cluster, plan.strategy, profile)
    _check_config(config, loaded)
    return Job(
        asked=loaded,
        recipe=resolve_recipe(recipe, plan, cluster, source),
        cluster=cluster,
        profile=profile,
        untraced=untraced,
        plan=plan,
        config=config,
        permits=permits,
        left_out={**left_out, **impossible},
    )


def _with_second(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with what the plan chose of a second partition."""
    if recipe.parallel.hpz != "auto":
        return recipe
    chosen = recipe.parallel.model_copy(update={"hpz": plan.strategy.second_partition})
    return recipe.model_copy(update={"parallel": chosen})


def _profile(
    recipe: Recipe, source: ModelSource, cluster: Cluster, on_phase: OnPhase
) -> tuple[Profile | None, str]:
    """The profile of a recipe's model, and why its passes aren't known where they aren't."""
    architecture = dict(source.architecture)
    try:
        architecture = architecture or hub_config(str(recipe.model.name), recipe.model.revision)
    except RecipeError as failure:
        return None, failure.message  # it may be trained all the same: the ranks load it
    return profile_of(recipe, architecture, on_cpu=cluster.device.kind == "cpu", on_phase=on_phase)


def _check_config(config: ResolvedConfig, loaded: LoadedRecipe) -> None:
    """Check what the recipe's own `deepspeed` section made of the config."""
    wrong = [
        replace(finding, where=loaded.where(f"deepspeed.{finding.where.key}"))
        for finding in lint(config.values)
        if finding.severity == "error"
    ]
    if len(wrong) == 1:
        raise RecipeError(wrong[0].message, where=wrong[0].where, hint=wrong[0].hint)
    if wrong:
        raise RecipeError(
            "the recipe's `deepspeed` section makes an invalid config",
            where=Where(key="deepspeed"),
            findings=wrong,
        )


def check_data_named(recipe: Recipe) -> None:
    """Check that a recipe names its data, that it is there, and with it what reads it.

    Raises:
        RecipeError: a package that the recipe needs is not installed.
        DataError: no data, a missing path, or nothing in it.
    """
    if recipe.data.train is None:
        raise DataError(
            "the recipe names no training data",
            where=Where(key="data.train"),
            hint="add it: `--set data.train=PATH`, a file, a folder, a glob pattern or a Hub name",
        )
    check_data(recipe)
    check_extras(recipe)


def plan_document(job: Job) -> dict[str, Json]:
    """plan.json: what was chosen and what is predicted."""
    return {"format": FORMAT, **planned_document(job)}


def planned_document(job: Job) -> dict[str, Json]:
    """Return what was chosen and what is predicted."""
    found = document(job.plan, job.recipe, job.cluster, job.profile, job.untraced, job.permits)
    found["long_samples"] = {
        "on": {part.key: part.what for part in parts_on(job.recipe)},
        "left_out": dict(job.left_out),
    }
    return found


def is_bare(name: str) -> bool:
    """Return whether this is a model (its folder, its config.json, its Hub name), not a recipe."""
    path = Path(name).expanduser()
    return path.is_dir() or path.suffix == ".json" or _is_hub_name(name)


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).expanduser().exists()


def load_to_plan(name: str, overrides: Sequence[str]) -> LoadedRecipe:
    """Load a recipe, or a model of which only the architecture is known.

    Args:
        name: a recipe, a model folder, a config.json, or a Hub name such as `org/model`.
        overrides: of the recipe; for a model, of the one that pre-trains it from scratch.

    Raises:
        InputError: the recipe, an override or the model's config is wrong.
    """
    path = Path(name).expanduser()
    if is_bare(name):
        file = path / "config.json" if path.is_dir() else path
        architecture = hub_config(name) if _is_hub_name(name) else read_config(file)
        model = json.dumps({"init": "scratch", "architecture": architecture})
        limit = architecture.get("max_position_embeddings", 1024)
        length = min(1024, limit if isinstance(limit, int) else 1024)
        # JSON is YAML, so an architecture can be given as an override
        given = [
            f"model={model}", f"data.sequence_length={length}", f"task={_task(architecture)}",
            *overrides,
        ]  # fmt: skip
        loaded = load_recipe("_scratch", given)
        others = {k: v for k, v in loaded.places.items() if not k.startswith("model")}
        return replace(loaded, name=path.stem, source=file, places=others)
    return load_recipe(name, overrides)


def of_model(name: str) -> tuple[str, list[str]]:
    """The recipe of any model, by its name on the Hub or its folder, and overrides that say which.

    What its config.json says is followed as far as it is known here: the task of its class, and
    samples no longer than its positions.

    Raises:
        RecipeError: the folder holds no model, or its config can't be read.
    """
    overrides = [f"model.name={json.dumps(name)}"]
    source = model_of(load_recipe(ANY_MODEL, overrides))
    if source.architecture:
        task, limit = _task(source.architecture), source.architecture.get("max_position_embeddings")
        overrides.append(f"task={task}")
        if isinstance(limit, int) and 0 < limit < _SAMPLE:
            overrides.append(f"data.sequence_length={limit}")
    return ANY_MODEL, overrides


def _task(architecture: Mapping[str, object]) -> str:
    """Return the task of a model, by the class that its config names."""
    named = architecture.get("architectures")
    classes = " ".join(map(str, named)) if isinstance(named, list) else ""
    for end, task in _TASKS.items():
        if end in classes:
            return task
    return "seq2seq" if architecture.get("is_encoder_decoder") else "pretrain"


def resolve_recipe(recipe: Recipe, plan: Plan, cluster: Cluster, source: ModelSource) -> Recipe:
    """The recipe with every `auto` of batch and partitioning replaced by what the plan chose.

    Sizes that are of another model than the one that is trained are left out.
    """
    made = settled(recipe, plan.strategy)
    of_recipe = source.file is None and source.architecture
    model = {"architecture": dict(source.architecture) if of_recipe else {}}
    return made.model_copy(
        update={
            "model": made.model.model_copy(update=model),
            "parallel": made.parallel.model_copy(update={"ranks": cluster.slots_per_host}),
        }
    )


def check_port(port: int | None) -> None:
    """Check that the port where the ranks are to meet is free.

    Raises:
        OptionError: something listens there.
    """
    from dslm.host.network import port_in_use

    if port is not None and port_in_use(port):
        raise OptionError(
            f"port {port} is in use",
            where=Where(key="--master-port"),
            hint="leave the option out: a free port is chosen then",
        )


def check_arguments(arguments: Sequence[str]) -> None:
    """Check that a script's arguments hold no secret: they are written down for every rank.

    Raises:
        OptionError: one does.
    """
    for position, why in find_in_arguments(arguments):
        raise OptionError(
            f"argument {position + 1} of the script {why}, and what a run is started with is "
            "written into its directory",
            where=Where(key="--"),
            hint=HINT,
        )
