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

from dslm.cluster.detect import local_cluster
from dslm.cluster.hosts import Cluster
from dslm.errors import DataError, DoesNotFit, OptionError, RecipeError, Where
from dslm.plan.memory import MARGIN
from dslm.plan.report import document
from dslm.plan.search import Plan, choose, smallest_world
from dslm.plan.shape import ModelShape, shape_of
from dslm.recipe.data_paths import check_data
from dslm.recipe.extras import check_extras
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Lora, Recipe
from dslm.run.manifest import SECRET
from dslm.units import render_bytes
from dslm.zero.generate import ResolvedConfig, generate
from dslm.zero.lint import lint

_SHARED = {"tensor": "layers", "sequence": "sequences"}


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
    like: Recipe | None = None,
) -> Job:
    """Decide everything about one training; reads files, writes none.

    Args:
        recipe_name: a preset or a file.
        overrides: `KEY=VALUE`, each.
        num_gpus: ranks per host.
        include: DeepSpeed's filter of slots.
        exclude: the opposite.
        cluster: where it runs; this machine when absent.
        like: the resolved recipe of the run to go on with: its stage stays unless the recipe says
            another, since a checkpoint's optimizer state belongs to a stage.

    Raises:
        InputError: the recipe, an option or the model folder is wrong.
    """
    loaded = load_recipe(recipe_name, overrides)
    recipe = loaded.recipe
    _check_secrets(recipe)
    if like is not None and recipe.parallel.zero_stage == "auto":
        kept = recipe.parallel.model_copy(update={"zero_stage": like.parallel.zero_stage})
        recipe = recipe.model_copy(update={"parallel": kept})
    shape = _shape(recipe)
    _check_length(recipe, shape)
    if cluster is None:
        cluster = local_cluster(
            num_gpus=num_gpus, ranks=recipe.parallel.ranks, include=include, exclude=exclude
        )
    plan = choose(recipe, cluster, shape)
    resolved = resolve_recipe(recipe, plan, cluster)
    config = generate(recipe, cluster, plan.strategy, shape)
    _check_config(config)
    return Job(
        name=loaded.name,
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


def check_fit(job: Job) -> None:
    """Check that the plan fits.

    Raises:
        DoesNotFit: it doesn't; says what would.
    """
    memory = job.plan.choice.memory
    if job.plan.fits or memory is None:
        return
    choice = job.plan.choice
    hint = "; ".join(ways_out(job)) + "; or go on anyway with `--force`"
    if not choice.fits_device:
        raise DoesNotFit(
            f"this needs {render_bytes(memory.total)} on each of {job.cluster.world_size} ranks "
            f"(in {memory.peak_phase}), and there are {render_bytes(choice.capacity)}",
            hint=hint,
        )
    raise DoesNotFit(
        f"this needs {render_bytes(memory.host)} of each host's memory, and there are "
        f"{render_bytes(choice.host_capacity or 0)}: the kernel would end a rank (exit -9)",
        hint=hint,
    )


def ways_out(job: Job) -> list[str]:
    """The three nearest changes that would make a job fit; fewer where there aren't three.

    First what leaves the training as it is: how it is partitioned, one change or the shortest
    chain of them, and how many devices. Then what trains something else: shorter sequences, LoRA.
    """
    if job.shape is None:
        return []
    found = [_said([change]) for change in _CHANGES if _fits_with(job, [change])][:2]
    if not found:
        found = _shortest(job, ())
    world = smallest_world(job.recipe, job.cluster, job.shape)
    if world is not None:
        found.append(f"{world} such devices")
    else:
        found += _more_devices(job)
    length = job.recipe.data.sequence_length
    shorter = [("data.sequence_length", length >> halved) for halved in (1, 2, 3)]
    for last in (*shorter, ("lora", Lora())):
        if len(found) >= _WAYS:
            break
        found += _shortest(job, (last,))
    memory = job.plan.choice.memory
    if len(found) < _WAYS and memory is not None and not job.plan.choice.fits_device:
        found.append(f"devices with {render_bytes(memory.total / (1 - MARGIN))} each")
    return found[:_WAYS]


def _more_devices(job: Job) -> list[str]:
    """How many such devices it takes with everything that saves memory on them."""
    chain = _CHANGES[:3]
    changed = _changed(job.recipe, chain)
    world = smallest_world(changed, job.cluster, job.shape) if job.shape else None
    return [f"{world} such devices with {_said(chain)}"] if world is not None else []


def _shortest(job: Job, last: tuple[Change, ...]) -> list[str]:
    """The shortest chain of changes that fits, those of `last` included; none if none does."""
    for length in range(0 if last else 2, len(_CHANGES) + 1):
        chain = [*_CHANGES[:length], *last]
        if _fits_with(job, chain):
            return [_said(chain)]
    return []


# Changes that save memory, the cheapest in time first; (key, value).
Change = tuple[str, Any]
_WAYS = 3
_CHANGES: tuple[Change, ...] = (
    ("batch.micro_size", 1),
    ("model.activation_checkpointing", True),
    ("parallel.zero_stage", 3),
    ("parallel.offload", "optimizer"),
    ("parallel.offload", "all"),
)


def _fits_with(job: Job, changes: Sequence[Change]) -> bool:
    recipe = _changed(job.recipe, changes)
    try:
        return recipe != job.recipe and choose(recipe, job.cluster, job.shape).fits
    except RecipeError:
        return False  # a combination that there is none of, such as offload at stage 0


def _changed(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    for key, value in changes:
        section, _, name = key.partition(".")
        if name:
            changed = getattr(recipe, section).model_copy(update={name: value})
            recipe = recipe.model_copy(update={section: changed})
        else:
            recipe = recipe.model_copy(update={section: value})
    return recipe


def _said(changes: Sequence[Change]) -> str:
    """Changes as options; of an offload only the last, which includes those before."""
    values = {
        key: "{}" if isinstance(value, Lora) else str(value).lower() for key, value in changes
    }
    return " with ".join(f"`--set {key}={value}`" for key, value in values.items())


def plan_document(job: Job) -> dict[str, Any]:
    """plan.json: what was chosen and what is predicted."""
    return document(job.plan, job.recipe, job.cluster, job.shape)


def plan_model(name: str, overrides: Sequence[str], cluster: Cluster) -> Job:
    """Decide about a recipe, or about a model of which only the architecture is known.

    Args:
        name: a recipe, a model folder, or a config.json.
        overrides: of the recipe; for a model, of the one that pre-trains it from scratch.
        cluster: where it is planned to run.

    Raises:
        InputError: as `decide`.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".json":
        architecture = _read_config(path / "config.json" if path.is_dir() else path)
        model = json.dumps({"init": "scratch", "architecture": architecture})
        limit = architecture.get("max_position_embeddings", 1024)
        length = min(1024, limit if isinstance(limit, int) else 1024)
        # JSON is YAML, so an architecture can be given as an override
        given = [f"model={model}", f"data.sequence_length={length}", *overrides]
        return decide("_scratch", given, cluster=cluster)
    return decide(name, overrides, cluster=cluster)


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


def _check_secrets(recipe: Recipe) -> None:
    for name in recipe.environment:
        if SECRET.search(name):
            raise RecipeError(
                f"`{name}` sounds like a secret, and a recipe is written into the run directory",
                where=Where(key=f"environment.{name}"),
                hint="set it in your own environment: the ranks inherit that",
            )


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
    from dslm.network import port_in_use

    if port is not None and port_in_use(port):
        raise OptionError(
            f"port {port} is in use",
            where=Where(key="--master-port"),
            hint="leave the option out: a free port is chosen then",
        )
