"""Verify on the ranks: run the layout, compare on rank 0, and look for the cause of a difference.

All ranks run every layout; the reference is rank 0's. What comes out is one event.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from dslm.recipe.preferences import reference_of
from dslm.recipe.schema import Recipe
from dslm.run.events import End, Verified, VerifiedDifference
from dslm.run.manifest import versions
from dslm.run.words import Phase
from dslm.worker.assemble import Training, arguments_of, assemble
from dslm.worker.assignment import Assignment, Inputs, read_assignment
from dslm.worker.ranks import Rank
from dslm.worker.reference import add_reference
from dslm.worker.tasks.base import Collate
from dslm.worker.train import (
    build_models,
    build_reference,
    join_ranks,
    model_settings,
    prepare_inputs,
    run_steps,
)
from dslm.worker.verify.compare import Difference
from dslm.worker.verify.evaluation import Evaluated, evaluated
from dslm.worker.verify.judge import Judge
from dslm.worker.verify.learnt import folded, smoothing_of
from dslm.worker.verify.mixed import mixed
from dslm.worker.verify.noise import LEAST
from dslm.worker.verify.plain import plain_of
from dslm.worker.verify.record import Recorder
from dslm.worker.verify.reduced import Reduced, reduce, write_adapters, write_reduced
from dslm.worker.verify.switches import Layout, switched

# of a verification, which may take three minutes with the start of the ranks: after which the
# layout makes no further step, no further step is compared, no other switch is tried
_STEPS_SECONDS, _COMPARE_SECONDS, _SECONDS = 60.0, 100.0, 150.0
_KEPT = 40  # differences


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one layout did: where it differs, and how much was compared; whole on rank 0 only."""

    differences: tuple[Difference, ...] = ()
    parameters: int = 0
    samples: int = 0
    steps: int = 0
    noise: float = 0.0
    losses: tuple[float, ...] = ()
    not_compared: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """What a layout doesn't differ without, and the setting that avoids it."""

    name: str = ""
    setting: str = ""
    tried: tuple[str, ...] = ()


NO_CAUSE = Cause()


def verify(rank: Rank) -> None:
    """Verify the layout of a run's resolved recipe; the event `verified` says what was found."""
    given = read_assignment(rank)
    join_ranks(given)
    steps = given.recipe.duration.steps or 1
    layout: Layout = (given.recipe, given.config)
    verdict = run_layout(given, layout)
    if rank.rank == 0 and verdict.differences:  # whatever becomes of the search for the cause
        rank.record(_event(given, verdict, NO_CAUSE))
    differs_at = _told(verdict.differences[0].step if verdict.differences else 0)
    cause = NO_CAUSE
    if differs_at:
        cause = cause_of(given, layout, differs_at, usual=given.seconds / steps * differs_at)
    if rank.rank == 0:
        rank.record(_event(given, verdict, cause))
        done = End(**rank.stamp(), status="done", step=verdict.steps, seconds=given.seconds)
        rank.record(done)
    dist.destroy_process_group()


def cause_of(given: Assignment, layout: Layout, step: int, usual: float) -> Cause:
    """Switch one thing after the other, until the layout differs no longer.

    Args:
        given: what this rank is told.
        layout: which differs.
        step: the first one that does: so many are made each time.
        usual: seconds that they take with their comparison.
    """
    tried: list[str] = []
    for switch, other in switched(layout):
        began = given.seconds
        if _told(began + usual >= _SECONDS):
            break
        given.phase(Phase.MODEL, f"without {switch.name}: does it still differ?")
        tried.append(switch.name)
        if not _told(bool(run_layout(given, other, steps=step).differences)):
            return Cause(name=switch.name, setting=switch.setting, tried=tuple(tried))
        usual = given.seconds - began
    return replace(NO_CAUSE, tried=tuple(tried))


def run_layout(given: Assignment, layout: Layout, steps: int | None = None) -> Verdict:
    """Run a layout for some steps and compare them; all ranks call, rank 0 gets the verdict."""
    recipe, config = layout
    inputs = prepare_inputs(replace(given, recipe=recipe, config=config))
    inputs = replace(inputs, steps=steps or inputs.steps, data=mixed(inputs.data))
    settings = model_settings(inputs)
    unset_hf_deepspeed_config()  # of the last layout: under ZeRO-3 the reference would be parted
    with _folder(given) as folder:
        small = _reduced(given, recipe, inputs, folder, settings)
        recipe = _of_folder(recipe, folder)
        given = replace(given, recipe=recipe, config=config)
        first = steps is None  # the layout itself, not one with something switched

        def late(made: int) -> bool:
            if first:
                given.phase(Phase.MODEL, f"step {made} of {inputs.steps} of the layout")
            return first and given.seconds > _STEPS_SECONDS

        plain = plain_of(given, inputs, settings, small.words) if given.rank.rank == 0 else None
        inputs = replace(inputs, task=replace(inputs.task, collator=_folding(inputs, small.words)))
        arguments = arguments_of(given, inputs)
        training = assemble(given, inputs, build_models(given, inputs, None), arguments)
        with _with_reference(given, inputs, training):
            recorder = Recorder(training.trainer, recipe, late)
            run_steps(given, training)
            held_out = _evaluated(given, training)
    verdict = Verdict()
    if plain is not None:
        until = _COMPARE_SECONDS if first else math.inf
        judge = Judge(given, inputs, training.trainer, plain, small)
        verdict = _compare(given, training, recorder, judge, held_out, until)
    del training, recorder
    gc.collect()
    torch.compiler.reset()  # kernels for the shapes of a rank's part of this layout
    dist.barrier()
    return verdict


def _evaluated(given: Assignment, training: Training) -> Evaluated | None:
    """An evaluation of the last step's samples; with smoothed labels the loss is another."""
    if smoothing_of(given.recipe):
        return None
    trainer = training.trainer
    return evaluated(trainer, [trainer.train_dataset[place] for place in _places(training)])


def _places(training: Training) -> list[int]:
    """Which samples the last step was of."""
    return [int(p) for p in training.trainer.sampler.samples_of_step(max(training.step, 1) - 1)]


@contextmanager
def _folder(given: Assignment) -> Iterator[str]:
    """A folder of this host's ranks, which the first of them makes and removes."""
    mine = given.rank.local_rank == 0
    host = given.rank.attempt.host_of(given.rank.rank)
    with tempfile.TemporaryDirectory(prefix="dslm-verify-") if mine else nullcontext("") as folder:
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, (host, folder))
        yield next(made for where, made in told if where == host and made)
        dist.barrier()


def _reduced(
    given: Assignment, recipe: Recipe, inputs: Inputs, folder: str, settings: dict[str, Any]
) -> Reduced:
    """Write the reduced model, on each host; what was taken away, on all ranks."""
    told: list[Any] = [None]
    if given.rank.local_rank == 0:
        small = reduce(recipe, inputs.tokenizer, given.layout, **settings)
        write_reduced(recipe, small.config, inputs.task.auto_class, folder)
        write_adapters(recipe, inputs.task.auto_class, folder)
        told = [replace(small, config=None)]  # whose class others may not have
    dist.broadcast_object_list(told, src=0)
    found: Reduced = told[0]
    return found


def _of_folder(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with the reduced model in place of its own, watched but never stopped."""
    model = {"name": folder, "init": "pretrained", "architecture": {}, "revision": "main"}
    lora = recipe.lora
    if lora is not None:
        adapter = str(Path(folder, "adapters")) if lora.adapter is not None else None
        lora = lora.model_copy(update={"dropout": 0.0, "adapter": adapter})
    guards = recipe.guards.model_copy(update={"on_trouble": "warn"})
    changed = {
        "model": recipe.model.model_copy(update=model),
        "lora": lora,
        "guards": guards,
        "log": recipe.log.model_copy(update={"samples": True}),  # batches say what is in them
    }
    return recipe.model_copy(update=changed)


def _folding(inputs: Inputs, words: int | None) -> Any:
    """The task's collators, whose batches name the words of the reduced model."""
    usual = inputs.task.collator

    def collator(recipe: Recipe, tokenizer: Any, config: Any) -> Collate:
        collate = usual(recipe, tokenizer, config)
        return lambda samples: folded(collate(samples), words)

    return collator


@contextmanager
def _with_reference(given: Assignment, inputs: Inputs, training: Training) -> Iterator[None]:
    """Log-probabilities of the start where the recipe has them computed once, for these steps."""
    files: list[Path] = []
    if reference_of(given.recipe) == "precomputed":
        again = partial(build_reference, given, inputs, None)
        files = add_reference(given, inputs, training.trainer, again)
    yield
    if given.rank.local_rank == 0:
        for file in files:
            file.unlink(missing_ok=True)


def _compare(
    given: Assignment,
    training: Training,
    recorder: Recorder,
    judge: Judge,
    held_out: Evaluated | None,
    until: float,
) -> Verdict:
    """Compare every recorded step; the first one that differs is the last that is looked at.

    After `until` seconds no further one is compared.
    """
    differences: list[Difference] = []
    compared = 0
    for number, step in enumerate(recorder.steps, 1):
        if differences or (compared and given.seconds > until):
            break
        given.phase(Phase.MODEL, f"step {number} of {len(recorder.steps)} in one process")
        places = [int(p) for p in training.trainer.sampler.samples_of_step(number - 1)]
        differences = judge.differences(step, number, places)
        compared = number
    last = recorder.steps[-1]
    if held_out is not None and not differences:
        made = len(recorder.steps)
        differences = judge.of_evaluation(held_out, last, made, _places(training))
    return Verdict(
        differences=tuple(differences),
        parameters=judge.parameters,
        samples=judge.samples,
        steps=compared,
        noise=judge.noise,
        losses=tuple(step.loss for step in recorder.steps[:compared]),
        not_compared=judge.left_out(last),
    )


def _finite(value: float) -> float:
    """A number that a document can hold."""
    return value if math.isfinite(value) else 1e30


def _told(value: int) -> int:
    """A number, or whether something is so, as rank 0 sees it, on all ranks."""
    told: list[Any] = [value]
    dist.broadcast_object_list(told, src=0)
    return int(told[0])


def _event(given: Assignment, verdict: Verdict, cause: Cause) -> Verified:
    return Verified(
        **given.rank.stamp(),
        same=not verdict.differences,
        parameters=verdict.parameters,
        samples=verdict.samples,
        steps=verdict.steps,
        ranks=given.rank.world_size,
        stage=given.stage,
        tensor=given.layout.tensor,
        sequence=given.layout.sequence,
        expert=given.layout.expert,
        precision=given.recipe.precision,
        noise=verdict.noise,
        losses=tuple(_finite(loss) for loss in verdict.losses),
        allowed_loss=LEAST[given.recipe.precision],
        not_compared=verdict.not_compared,
        seconds=round(time.monotonic() - given.began, 3),
        versions=dict(versions()),
        found=len(verdict.differences),
        differences=tuple(
            VerifiedDifference(
                kind=each.kind,
                name=each.name,
                step=each.step,
                deviation=_finite(each.deviation),
                allowed=each.allowed,
                ratio=None if each.ratio is None else _finite(each.ratio),
            )
            for each in verdict.differences[:_KEPT]
        ),
        cause=cause.name,
        setting=cause.setting,
        tried=cause.tried,
    )
