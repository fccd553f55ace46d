"""From a recipe to a job that is ready to launch: recipe → cluster → plan → DeepSpeed config.

Everything here is decided before anything is written or started, so every kind of bad input ends
here. What comes out is a value; `dslm.launch.supervise` is what runs it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dslm.cluster.detect import local_cluster
from dslm.cluster.hosts import Cluster
from dslm.errors import DataError, OptionError, RecipeError, Where
from dslm.plan.search import Plan, choose
from dslm.plan.shape import ModelShape, shape_of
from dslm.recipe.data_paths import check_data
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe
from dslm.zero.generate import ResolvedConfig, generate


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training, decided: the resolved recipe, where it runs, the plan and the config."""

    name: str
    recipe: Recipe
    cluster: Cluster
    shape: ModelShape | None
    plan: Plan
    config: ResolvedConfig


def decide(
    recipe_name: str,
    overrides: Sequence[str] = (),
    *,
    num_gpus: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    cluster: Cluster | None = None,
) -> Job:
    """Decide everything about one training; reads files, writes none.

    Raises:
        InputError: the recipe, an option or the model folder is wrong.
    """
    loaded = load_recipe(recipe_name, overrides)
    recipe = loaded.recipe
    shape = _shape(recipe)
    _check_length(recipe, shape)
    if cluster is None:
        cluster = local_cluster(
            num_gpus=num_gpus, ranks=recipe.parallel.ranks, include=include, exclude=exclude
        )
    plan = choose(recipe, cluster, shape)
    resolved = resolve_recipe(recipe, plan, cluster)
    return Job(
        name=loaded.name,
        recipe=resolved,
        cluster=cluster,
        shape=shape,
        plan=plan,
        config=generate(recipe, cluster, plan.strategy, shape),
    )


def check_inputs(job: Job) -> None:
    """Check what a launch needs beyond planning: the data.

    Raises:
        DataError: no data, a missing path, or nothing in it.
    """
    if job.recipe.data.train is None:
        raise DataError(
            "the recipe names no training data",
            where=Where(key="data.train"),
            hint="add it: `--set data.train=PATH`, a file, a folder, a glob pattern or a Hub name",
        )
    check_data(job.recipe)


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
    if model.architecture:
        return shape_of(model.architecture)
    folder = Path(model.name or "").expanduser()
    if not folder.exists():
        if str(model.name).startswith((".", "/", "~")):
            raise RecipeError(
                f"there is no model folder `{model.name}`",
                where=Where(key="model.name"),
                hint="give a folder with a config.json, or a Hub name such as `gpt2`",
            )
        return None
    config = folder / "config.json"
    if not config.is_file():
        raise RecipeError(
            f"`{model.name}` is not a model folder: it has no config.json",
            where=Where(key="model.name"),
            hint="give a folder written by `save_pretrained`, or a Hub name",
        )
    try:
        architecture = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise RecipeError(
            f"its config.json can't be read: {failure}", where=Where(file=config)
        ) from failure
    return shape_of(architecture)


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
    from dslm.launch.ports import port_in_use

    if port is not None and port_in_use(port):
        raise OptionError(
            f"port {port} is in use",
            where=Where(key="--master-port"),
            hint="leave the option out: a free port is chosen then",
        )
