"""Verify on the ranks: run the layout, compare on rank 0, and look for the cause of a difference.

All ranks run every layout; the reference is rank 0's. What comes out is one event.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from dslm.recipe.schema import Recipe
from dslm.run.events import End, Verified, VerifiedDifference
from dslm.run.manifest import versions
from dslm.run.words import Phase
from dslm.units import number_of
from dslm.worker.assemble import Training, arguments_of, assemble
from dslm.worker.assignment import Assignment, Inputs, read_assignment
from dslm.worker.model import build_model, label_settings
from dslm.worker.number_formats import DTYPES
from dslm.worker.ranks import Rank
from dslm.worker.train import build_models, join_ranks, prepare_inputs, run_steps
from dslm.worker.verify.compare import (
    LEAST,
    Difference,
    Noise,
    compare_gradients,
    compare_losses,
    compare_norm,
    compare_ranks,
    compare_samples,
    noise_of,
    wrong_parameters,
)
from dslm.worker.verify.mixed import mixed
from dslm.worker.verify.record import Recorder
from dslm.worker.verify.reduced import reduced_config, without_dropout, write_reduced
from dslm.worker.verify.reference import Found, Reference
from dslm.worker.verify.switches import Layout, switched
from dslm.worker.verify.updates import Updates

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


def verify(rank: Rank) -> None:
    """Verify the layout of a run's resolved recipe; the event `verified` says what was found."""
    given = read_assignment(rank)
    join_ranks(given)
    steps = given.recipe.duration.steps or 1
    layout: Layout = (given.recipe, given.config)
    verdict = run_layout(given, layout)
    if rank.rank == 0 and verdict.differences:  # whatever becomes of the search for the cause
        rank.record(_event(given, verdict, "", "", ()))
    cause, setting, tried = "", "", []
    usual = given.seconds / steps  # of a step with its comparison
    for switch, other in switched(layout) if _all_see(bool(verdict.differences)) else ():
        began = given.seconds
        if not _all_see(began + usual < _SECONDS):
            break
        given.phase(Phase.MODEL, f"without {switch.name}: does it still differ?")
        tried.append(switch.name)
        if not _all_see(bool(run_layout(given, other, steps=1).differences)):
            cause, setting = switch.name, switch.setting
            break
        usual = given.seconds - began
    if rank.rank == 0:
        rank.record(_event(given, verdict, cause, setting, tuple(tried)))
        done = End(**rank.stamp(), status="done", step=verdict.steps, seconds=given.seconds)
        rank.record(done)
    dist.destroy_process_group()


def run_layout(given: Assignment, layout: Layout, steps: int | None = None) -> Verdict:
    """Run a layout for some steps and compare them; all ranks call, rank 0 gets the verdict."""
    recipe, config = layout
    inputs = prepare_inputs(replace(given, recipe=recipe, config=config))
    inputs = replace(inputs, steps=steps or inputs.steps, data=mixed(inputs.data))
    settings = label_settings(inputs.data.labels)
    unset_hf_deepspeed_config()  # of the last layout: under ZeRO-3 the reference would be parted
    with tempfile.TemporaryDirectory(prefix="dslm-verify-") as folder:
        reduced = reduced_config(recipe, inputs.tokenizer, given.layout, **settings)
        had_dropout = bool(without_dropout(reduced)) or bool(recipe.lora and recipe.lora.dropout)
        write_reduced(recipe, reduced, inputs.task.auto_class, folder)
        recipe = _of_folder(recipe, folder)
        given = replace(given, recipe=recipe, config=config)
        first = steps is None  # the layout itself, not one with something switched

        def late(made: int) -> bool:
            if first:
                given.phase(Phase.MODEL, f"step {made} of {inputs.steps} of the layout")
            return given.seconds > _STEPS_SECONDS

        set_seed(recipe.seed)
        plain = _plain(given, inputs, settings) if given.rank.rank == 0 else None
        arguments = arguments_of(given, inputs)
        training = assemble(given, inputs, build_models(given, inputs, None), arguments)
        recorder = Recorder(training.trainer, recipe.task, late)
        run_steps(given, training)
    verdict = Verdict()
    if plain is not None:
        verdict = _compare(given, inputs, training, recorder, plain, had_dropout=had_dropout)
    del training, recorder
    gc.collect()
    dist.barrier()
    return verdict


def _of_folder(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with the reduced model in place of its own, watched but never stopped."""
    model = {"name": folder, "init": "pretrained", "architecture": {}, "revision": "main"}
    lora = recipe.lora.model_copy(update={"dropout": 0.0}) if recipe.lora else None
    guards = recipe.guards.model_copy(update={"on_trouble": "warn"})
    changed = {
        "model": recipe.model.model_copy(update=model),
        "lora": lora,
        "guards": guards,
        "log": recipe.log.model_copy(update={"samples": True}),  # batches say what is in them
    }
    return recipe.model_copy(update=changed)


def _plain(given: Assignment, inputs: Inputs, settings: dict[str, Any]) -> Reference:
    """The reference: fp32, eager attention, nothing recomputed, fused or compiled."""
    own = {"attention": "eager", "activation_checkpointing": False, "liger": False}
    model = given.recipe.model.model_copy(update={**own, "compile": False})
    recipe = given.recipe.model_copy(update={"model": model, "precision": "fp32"})
    built = build_model(recipe, inputs.task.auto_class, inputs.tokenizer, **settings)
    collate = inputs.task.collator(recipe, inputs.tokenizer, built.config)
    return Reference(built, recipe.task, collate, torch.float32)


def _compare(
    given: Assignment,
    inputs: Inputs,
    training: Training,
    recorder: Recorder,
    plain: Reference,
    *,
    had_dropout: bool,
) -> Verdict:
    """Compare every recorded step; the first one that differs is the last that is looked at."""
    precision, micro = given.recipe.precision, given.config["train_micro_batch_size_per_gpu"]
    sampler = training.trainer.sampler
    updates, noise = Updates(given.recipe), Noise()
    differences: list[Difference] = []
    samples = compared = 0
    for number, step in enumerate(recorder.steps, 1):
        if compared and given.seconds > _COMPARE_SECONDS:
            break
        given.phase(Phase.MODEL, f"step {number} of {len(recorder.steps)} in one process")
        compared = number
        batch = [inputs.data.train[int(place)] for place in sampler.samples_of_step(number - 1)]
        samples += len(batch)
        if number == 1:
            differences += wrong_parameters(plain.unlike(step.before), number)
        differences += wrong_parameters(plain.take(step.before), number)
        wanted = plain.find(batch)
        if number == 1:
            noise = _measure(plain, batch, wanted, DTYPES[precision], micro)
        differences += [
            *compare_samples(step, number, wanted),
            *compare_ranks(
                step, number, given.recipe.optimizer.lr, given.layout, dropout=had_dropout
            ),
            *compare_losses(step, number, wanted, noise, precision),
            *compare_gradients(step, number, wanted, noise, precision),
            *compare_norm(step, number, precision),
            *updates.compare(step, number),
        ]
        if differences:
            break
    return Verdict(
        differences=tuple(differences),
        parameters=len(plain.trained()),
        samples=samples,
        steps=compared,
        noise=max(noise.gradients.values(), default=0.0),
        losses=tuple(step.loss for step in recorder.steps[:compared]),
        not_compared=_left_out(given, recorder, updates),
    )


def _left_out(given: Assignment, recorder: Recorder, updates: Updates) -> tuple[str, ...]:
    """Say what no reference is known of."""
    optimizer = given.recipe.optimizer.name
    last = recorder.steps[-1]
    told = {
        f"updates of {optimizer}": not updates.knows,
        f"gradients of {number_of(len(last.unknown), 'parameter')}": bool(last.unknown),
        "losses of single samples": not last.losses,
    }
    return tuple(text for text, true in told.items() if true)


def _measure(
    plain: Reference, batch: list[dict[str, Any]], exact: Found, precision: torch.dtype, micro: int
) -> Noise:
    """The noise of the recipe's number format: the same batch in it, in two orders of summation."""
    own = plain.in_precision(copy.deepcopy(plain.model), precision)
    return noise_of(exact, [own.find(batch, micro), own.find(batch[::-1], micro)])


def _all_see(true: bool) -> bool:
    """What rank 0 sees, on all ranks."""
    told: list[Any] = [true]
    dist.broadcast_object_list(told, src=0)
    return bool(told[0])


def _event(
    given: Assignment, verdict: Verdict, cause: str, setting: str, tried: tuple[str, ...]
) -> Verified:
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
        losses=verdict.losses,
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
                deviation=min(each.deviation, 1e30),
                allowed=each.allowed,
                ratio=each.ratio,
            )
            for each in verdict.differences[:_KEPT]
        ),
        cause=cause,
        setting=setting,
        tried=tried,
    )
