"""From a recipe to a job that is ready to launch: recipe → cluster → plan → DeepSpeed config.

Everything here is decided before anything is written or started, so every kind of bad input ends
here. What comes out is a value; `dslm.launch.supervise` is what runs it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm.cluster.hosts import Cluster
from dslm.errors import DataError, OptionError, RecipeError, Where
from dslm.plan.report import document
from dslm.plan.search import Plan, choose
from dslm.plan.shape import ModelShape, shape_of
from dslm.recipe.data_paths import check_data
from dslm.recipe.extras import check_extras
from dslm.recipe.load import LoadedRecipe, load_recipe
from dslm.recipe.schema import Recipe
from dslm.secrets import HINT, find_in_arguments
from dslm.zero.generate import ResolvedConfig, generate
from dslm.zero.lint import lint

_SHARED = {"tensor": "layers", "sequence": "sequences"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training, resolved: what was asked for, and what of it runs where, how planned."""

    asked: LoadedRecipe  # with the place of each key, for what is found wrong later
    recipe: Recipe
    cluster: Cluster
    shape: ModelShape | None
    plan: Plan
    config: ResolvedConfig

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.asked.name


def resolve_job(loaded: LoadedRecipe, cluster: Cluster, *, resumed: Recipe | None = None) -> Job:
    """Resolve one training on a cluster; reads a model folder's config.json, and nothing else.

    Args:
        loaded: the recipe, as it was asked for.
        cluster: where it runs.
        resumed: the resolved recipe of the run that is resumed: its stage stays unless the recipe
            says another, since a checkpoint's optimizer state belongs to a stage.

    Raises:
        InputError: the recipe or the model folder is wrong.
    """
    recipe = loaded.recipe
    if resumed is not None and recipe.parallel.zero_stage == "auto":
        kept = recipe.parallel.model_copy(update={"zero_stage": resumed.parallel.zero_stage})
        recipe = recipe.model_copy(update={"parallel": kept})
    shape = _shape(recipe)
    _check_length(recipe, shape)
    plan = choose(recipe, cluster, shape)
    resolved = resolve_recipe(recipe, plan, cluster)
    config = generate(recipe, cluster, plan.strategy, shape)
    _check_config(config)
    return Job(
        asked=loaded,
        recipe=resolved,
        cluster=cluster,
        shape=shape,
        plan=plan,
        config=config,
    )


def _check_config(config: ResolvedConfig) -> None:
    """Check what the recipe's own `deepspeed` section made of the config."""
    wrong = [finding for finding in lint(config.values) if finding.severity == "error"]
    if wrong:
        raise RecipeError(
            "the recipe's `deepspeed` section makes a config that is wrong",
            where=Where(key="deepspeed"),
            findings=wrong,
        )


def check_inputs(job: Job) -> None:
    """Check what a launch needs beyond planning: the data, and ranks that dslm's worker can use.

    Raises:
        RecipeError: the task is a script's own, or ranks share layers or sequences, which only a
            script of one's own can do; or adapters would go on a model that was never trained.
        DataError: no data, a missing path, or nothing in it.
    """
    if job.recipe.task == "script":
        raise RecipeError(
            "the task `script` is your own script's",
            where=Where(key="task"),
            hint="`dslm launch SCRIPT --recipe RECIPE` runs it with this recipe's config",
        )
    for key in ("tensor", "sequence"):
        if getattr(job.recipe.parallel, key) > 1:
            raise RecipeError(
                f"`dslm train` can't share {_SHARED[key]} between ranks",
                where=Where(key=f"parallel.{key}"),
                hint="leave it out (`parallel.zero_stage: 3` partitions the model), or give the "
                "config to your own script: `dslm launch SCRIPT --recipe RECIPE --pass-config`",
            )
    if job.recipe.lora is not None and job.recipe.model.init == "scratch":
        raise RecipeError(
            "adapters need a trained model, and this one starts from scratch",
            where=Where(key="lora"),
            hint="name one: `--set model.init=pretrained --set model.name=FOLDER`, or leave "
            "`lora` out",
        )
    check_data_named(job.recipe)


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


def plan_document(job: Job) -> dict[str, Any]:
    """plan.json: what was chosen and what is predicted."""
    return document(job.plan, job.recipe, job.cluster, job.shape)


def load_to_plan(name: str, overrides: Sequence[str]) -> LoadedRecipe:
    """Load a recipe, or a model of which only the architecture is known.

    Args:
        name: a recipe, a model folder, or a config.json.
        overrides: of the recipe; for a model, of the one that pre-trains it from scratch.

    Raises:
        InputError: the recipe, an override or the model's config is wrong.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".json":
        architecture = _read_config(path / "config.json" if path.is_dir() else path)
        model = json.dumps({"init": "scratch", "architecture": architecture})
        limit = architecture.get("max_position_embeddings", 1024)
        length = min(1024, limit if isinstance(limit, int) else 1024)
        # JSON is YAML, so an architecture can be given as an override
        given = [f"model={model}", f"data.sequence_length={length}", *overrides]
        return load_recipe("_scratch", given)
    return load_recipe(name, overrides)


def resolve_recipe(recipe: Recipe, plan: Plan, cluster: Cluster) -> Recipe:
    """The recipe with every `auto` of batch and partitioning replaced by what the plan chose."""
    strategy = plan.strategy
    return recipe.model_copy(
        update={
            "batch": recipe.batch.model_copy(update={"micro_size": strategy.micro_batch_size}),
            "model": recipe.model.model_copy(
                update={"activation_checkpointing": strategy.activation_checkpointing}
            ),
            "parallel": recipe.parallel.model_copy(
                update={
                    "zero_stage": strategy.zero_stage,
                    "offload": strategy.offload,
                    "tensor": strategy.tensor_parallel,
                    "sequence": strategy.sequence_parallel,
                    "ranks": cluster.slots_per_host,
                }
            ),
        }
    )


def _shape(recipe: Recipe) -> ModelShape | None:
    """The model's shape, from the recipe or the config.json of a local folder; None: not known."""
    model = recipe.model
    folder = Path(model.name).expanduser() if model.name else None
    if folder is None or not folder.exists():
        if str(model.name).startswith((".", "/", "~")):
            raise RecipeError(
                f"there is no model folder `{model.name}`",
                where=Where(key="model.name"),
                hint="give a folder with a config.json, or a Hub name such as `gpt2`",
            )
        return shape_of(model.architecture, recipe.task) if model.architecture else None
    config = folder / "config.json"
    if not config.is_file():
        raise RecipeError(
            f"`{model.name}` is not a model folder: it has no config.json",
            where=Where(key="model.name"),
            hint="give a folder written by `save_pretrained`, or a Hub name",
        )
    architecture = model.architecture or _read_config(config)
    try:
        return shape_of(architecture, recipe.task)
    except RecipeError:
        return None  # a family with sizes of other names: it is trained, but not planned


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise RecipeError(
            f"the model's config can't be read: {failure}", where=Where(file=file)
        ) from failure
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise RecipeError(
            "this is not a model's config: it has no `model_type`", where=Where(file=file)
        )
    return config


def _check_length(recipe: Recipe, shape: ModelShape | None) -> None:
    longest = shape.max_positions if shape else None
    if longest is not None and recipe.task != "vision" and recipe.data.sequence_length > longest:
        raise RecipeError(
            f"sequences of {recipe.data.sequence_length} tokens are longer than the model's "
            f"{longest} positions",
            where=Where(key="data.sequence_length"),
            hint=f"`--set data.sequence_length={longest}` or less",
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
