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
from dslm.errors import RunFailed, Where
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
from dslm.recipe.preferences import PREFERENCES
from dslm.recipe.schema import Recipe
from dslm.run.directory import RunDirectory
from dslm.run.documents import FORMAT
from dslm.run.events import Verified, as_record
from dslm.run.history import read_history
from dslm.zero.generate import leaves

_WORKER = "dslm.worker.verify"
_LONGEST = 128  # tokens of a sample
_WITH_PROMPTS = 512  # where an answer stands behind its prompt
_SEQUENCES = 32  # of a global batch, beyond which micro batches and their number are cut
_MICRO, _ACCUMULATED = 2, 4
_CURVES = ("linear", "cosine")  # that are known here; others become constant
_DOCUMENTS = 400
_LABELLED = 20_000  # documents where each has a label: they may be sorted by it
_BUCKET = 20_000  # elements: several buckets also where the model is small
# of a recipe, what is trained and not how the work is shared out
_WHAT = ("task", "model.name", "model.init", "model.architecture", "model.tokenizer", "seed",
         "lora", "data.train", "data.sequence_length", "data.packing", "data.max_documents",
         "batch.global_size", "optimizer")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a verification found, and where it is kept."""

    run: RunDirectory
    recipe: Recipe  # cut for the verification
    found: Verified
    known: tuple[str, ...] = ()  # mistakes of installed versions that the recipe meets


def verify(
    request: TrainingRequest, listener: Listener, steps: int, like: Verification | None = None
) -> Verification:
    """Verify a recipe's layout on the hosts of a request; verified.json keeps what was found.

    Args:
        request: what would be trained, and where.
        listener: is told of the phases.
        steps: optimizer steps to compare.
        like: another verification, to the same number of sequences a step if they can be split so.

    Raises:
        InputError: the recipe, an option or the folder is wrong.
        PreflightError: too few hosts are fit.
        RunFailed: the ranks ended without an answer.
    """
    folder = request.output or default_folder(f"{request.recipe.name}-verify")
    with owned_run(folder.absolute(), listener) as run:
        return _verify(request, run, listener, steps, like)


def _verify(
    request: TrainingRequest,
    run: RunDirectory,
    listener: Listener,
    steps: int,
    like: Verification | None,
) -> Verification:
    asking = Asking(verb=Verb.VERIFY, force=True)
    training = Training(recipe=request.recipe, asking=asking, report=listener.note)
    port = request.master_port or free_port()
    requirements = Requirements(run=run.path, port=port, needs_shared=False)
    rendezvous = gather(request.fleet, requirements, training, all_hosts=True)
    whole = training.job(rendezvous.cluster)
    job = resolve_job(reduced(request.recipe, whole, steps, like), rendezvous.cluster)
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
    # a difference was found, whatever became of the search for its cause
    if found is None or (outcome.status != Status.DONE and found.same):
        why = diagnose(run, outcome).event(outcome.attempt, noticed=outcome.noticed)
        raise RunFailed(
            f"the layout could not be verified: {why.cause or why.message}",
            where=Where(file=run.path),
            hint=why.remedy or f"`dslm runs show {run.path}` shows more",
        )
    write_json(run.verified, {"format": FORMAT, **as_record(found)})
    return Verification(run=run, recipe=job.recipe, found=found, known=known_of(whole))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two layouts beside each other."""

    keys: tuple[str, ...]  # by which the recipes train other things, not only in another layout
    apart: float | None  # the largest relative distance of their losses; None: not comparable
    allowed: float

    @property
    def differs(self) -> bool:
        """Whether the layouts of one training give different losses."""
        return self.apart is not None and not self.apart <= self.allowed

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        if self.apart is None:
            keys = ", ".join(f"`{key}`" for key in self.keys)
            return f"the recipes differ in more than the layout, so their losses do: {keys}"
        return f"the losses of the two layouts are {self.apart:.1e} apart at most"

    @property
    def document(self) -> dict[str, object]:
        """What was found, for programs."""
        return {"other_keys": list(self.keys), "losses_apart": self.apart}


def compared_layouts(one: Verification, other: Verification) -> Pair:
    """Compare two layouts that were verified by the losses of their steps."""
    mine, theirs = (dict(leaves(each.recipe.model_dump(mode="json"))) for each in (one, other))
    keys = tuple(
        key
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key)
        and (key in _WHAT or key.startswith(tuple(f"{what}." for what in _WHAT)))
    )
    pairs = zip(one.found.losses, other.found.losses, strict=False)
    apart = max((abs(a - b) / max(abs(a), 1e-6) for a, b in pairs), default=0.0)
    coarse = max(one.found.allowed_loss, other.found.allowed_loss)
    return Pair(keys=keys, apart=None if keys else apart, allowed=2 * coarse)


def reduced(
    loaded: LoadedRecipe, job: Job, steps: int, like: Verification | None = None
) -> LoadedRecipe:
    """Return the recipe for a few short steps, with the layout that was resolved for the whole."""
    recipe, strategy = job.recipe, job.plan.strategy
    ranks = recipe.batch.global_size // (
        strategy.micro_batch_size * strategy.gradient_accumulation_steps
    )
    micro, accumulated = strategy.micro_batch_size, strategy.gradient_accumulation_steps
    if recipe.batch.global_size > max(_SEQUENCES, 2 * ranks):
        micro = min(micro, _MICRO)
        accumulated = min(max(accumulated, 2), _ACCUMULATED)
    wanted = like.recipe.batch.global_size if like is not None else 0
    micro = next((n for n in (micro, 1) if wanted and not wanted % (n * ranks)), micro)
    if wanted and not wanted % (micro * ranks):
        accumulated = wanted // (micro * ranks)
    shares = strategy.sequence_parallel  # of a sequence, that ranks have
    most = _LABELLED if recipe.task in ("classify", "vision") else _DOCUMENTS
    documents = min(recipe.data.max_documents or most, most)
    prompts = recipe.task == "sft" or recipe.task in PREFERENCES
    longest = _WITH_PROMPTS if prompts else _LONGEST
    curve = recipe.schedule.name if recipe.schedule.name in _CURVES else "constant"
    changes: dict[str, dict[str, object]] = {
        "batch": {"global_size": micro * accumulated * ranks, "micro_size": micro},
        "data": {
            "sequence_length": min(recipe.data.sequence_length, max(1, longest // shares) * shares),
            "max_documents": documents,
            "eval": 0.0,
            "workers": 0,
        },
        "schedule": {"name": curve, "warmup": 0.0},
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
