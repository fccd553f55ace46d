"""One verification: a recipe's own layout for a few steps, beside what one process computes.

The recipe is resolved as for a training; what makes it long or large is taken away, what makes the
layout is kept. The ranks do the rest (`dslm.worker.verify`) and answer with one event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.checks.versions import known_of
from dslm.decide.job import Job, plan_document, resolve_job
from dslm.diagnose.explain import diagnose
from dslm.errors import RecipeError, RunFailed, Where
from dslm.files import write_json
from dslm.host.network import free_port
from dslm.launch.outcome import Status
from dslm.lifecycle.attempt import AttemptPlan, RankProgram, run_attempt
from dslm.lifecycle.folder import default_folder, make_run
from dslm.lifecycle.owned import owned_run
from dslm.lifecycle.rendezvous import Training, gather
from dslm.lifecycle.request import Listener, TrainingRequest
from dslm.reach.preflight import Requirements
from dslm.recipe.load import LoadedRecipe, dump_recipe
from dslm.run.directory import RunDirectory
from dslm.run.documents import FORMAT
from dslm.run.events import Verified, as_record
from dslm.run.history import read_history

_WORKER = "dslm.worker.verify"
_LONGEST = 128  # tokens of a sample
_DOCUMENTS = 400
_SEQUENCES = 32  # of a global batch, beyond which micro batches and their number are cut
_MICRO, _ACCUMULATED = 2, 4
_BUCKET = 20_000  # elements: several buckets also where the model is small


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a verification found, and where it is kept."""

    run: RunDirectory
    found: Verified
    known: tuple[str, ...] = ()  # mistakes of installed versions that the recipe meets


def verify(request: TrainingRequest, listener: Listener, steps: int) -> Verification:
    """Verify a recipe's layout on the hosts of a request; verified.json keeps what was found.

    Raises:
        InputError: the recipe, an option or the folder is wrong.
        PreflightError: too few hosts are fit.
        RunFailed: the ranks ended without an answer.
    """
    folder = request.output or default_folder(f"{request.recipe.name}-verify")
    with owned_run(folder.absolute(), listener) as run:
        return _verify(request, run, listener, steps)


def _verify(
    request: TrainingRequest, run: RunDirectory, listener: Listener, steps: int
) -> Verification:
    asking = Asking(verb=Verb.VERIFY, force=True)
    training = Training(recipe=request.recipe, asking=asking, report=listener.note)
    port = request.master_port or free_port()
    requirements = Requirements(run=run.path, port=port, needs_shared=False)
    rendezvous = gather(request.fleet, requirements, training, all_hosts=True)
    whole = training.job(rendezvous.cluster)
    check_shared(whole)
    job = resolve_job(reduced(request.recipe, whole, steps), rendezvous.cluster)
    files = {
        "recipe.yaml": dump_recipe(job.recipe),
        "ds_config.json": _small_buckets(job),
        "plan.json": plan_document(job),
    }
    make_run(run.path, f"{job.name}-verify", files, request.command, job.cluster.hosts)
    listener.run_made(run.path)
    program = RankProgram(
        module=_WORKER, environment=job.recipe.environment, watchdog=job.recipe.watchdog
    )
    plan = AttemptPlan(
        fleet=request.fleet,
        rendezvous=replace(rendezvous, cluster=job.cluster),
        program=program,
        port=port,
    )
    outcome, _ = run_attempt(run, plan, listener)
    found = read_history(run).last(Verified)
    if outcome.status != Status.DONE or found is None:
        why = diagnose(run, outcome).event(outcome.attempt, noticed=outcome.noticed)
        raise RunFailed(
            f"the layout could not be verified: {why.cause or why.message}",
            where=Where(file=run.path),
            hint=why.remedy or f"`dslm runs show {run.path}` shows more",
        )
    write_json(run.verified, {"format": FORMAT, **as_record(found)})
    return Verification(run=run, found=found, known=known_of(whole))


def check_shared(job: Job) -> None:
    """Check that ranks share no layers, sequences or experts: no reference is known of these yet.

    Raises:
        RecipeError: they do.
    """
    parallel = job.recipe.parallel
    for name in ("tensor", "sequence", "expert"):
        size = getattr(parallel, name, 1)
        if isinstance(size, int) and size > 1:
            raise RecipeError(
                f"`dslm verify` can't compare ranks that share their work (`parallel.{name}: "
                f"{size}`) yet",
                where=job.asked.where(f"parallel.{name}"),
                hint=f"`--set parallel.{name}=1` verifies the rest of the layout",
            )


def reduced(loaded: LoadedRecipe, job: Job, steps: int) -> LoadedRecipe:
    """Return the recipe for a few short steps, with the layout that was resolved for the whole."""
    recipe, strategy = job.recipe, job.plan.strategy
    ranks = recipe.batch.global_size // (
        strategy.micro_batch_size * strategy.gradient_accumulation_steps
    )
    micro, accumulated = strategy.micro_batch_size, strategy.gradient_accumulation_steps
    if recipe.batch.global_size > max(_SEQUENCES, 2 * ranks):
        micro = min(micro, _MICRO)
        accumulated = min(max(accumulated, 2), _ACCUMULATED)
    documents = min(recipe.data.max_documents or _DOCUMENTS, _DOCUMENTS)
    changes: dict[str, dict[str, object]] = {
        "batch": {"global_size": micro * accumulated * ranks, "micro_size": micro},
        "data": {
            "sequence_length": min(recipe.data.sequence_length, _LONGEST),
            "max_documents": documents,
            "eval": 0.0,
            "workers": 0,
        },
        "schedule": {"name": "constant", "warmup": 0.0},
        "duration": {"steps": steps, "epochs": None, "tokens": None},
        "checkpoint": {"every": None, "keep_best": 0},
        "evaluation": {"every": None, "sample": None},
        "log": {"every": 1, "report_to": [], "samples": False},
        "model": {"architecture": loaded.recipe.model.architecture},
    }
    parts = {
        name: getattr(recipe, name).model_copy(update=values) for name, values in changes.items()
    }
    return replace(loaded, recipe=recipe.model_copy(update=parts))


def _small_buckets(job: Job) -> dict[str, object]:
    """The DeepSpeed config with buckets that the reduced model fills several times."""
    values = dict(job.config.values)
    zero = dict(values.get("zero_optimization", {}))
    small = {k: min(int(v), _BUCKET) for k, v in zero.items() if k.endswith("bucket_size")}
    return {**values, "zero_optimization": {**zero, **small}}
