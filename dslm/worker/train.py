"""One training on one rank, from the resolved recipe to the exported model: its steps, in order.

The order matters: the process group first, then TrainingArguments, then the model, or ZeRO-3 can't
partition it as it is made.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pickle import UnpicklingError
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import set_seed

from dslm.errors import DataError, InputError, RecipeError, Where
from dslm.recipe.duration import total_steps
from dslm.recipe.packs import is_packed, leaks, refusal
from dslm.recipe.preferences import reference_of
from dslm.run.checkpoints import MANIFEST
from dslm.run.documents import CheckpointManifest, PlanFile, find_document, read_document
from dslm.run.words import Phase
from dslm.units import number_of
from dslm.worker.allocator import give_large_blocks_back
from dslm.worker.assemble import Training, arguments_of, assemble
from dslm.worker.assignment import Assignment, Inputs, Models, read_assignment
from dslm.worker.data.prepare import Prepared, prepare
from dslm.worker.data.tokenizer import load_tokenizer
from dslm.worker.extension_builds import build_folder, is_built, remove_dead_marks
from dslm.worker.features import mend, put_on
from dslm.worker.finish import finish, finish_early
from dslm.worker.first_loss import FirstLoss, expected_loss
from dslm.worker.layout.apart import kept_apart
from dslm.worker.layout.share import share_head, share_model
from dslm.worker.loading import LoadingReport
from dslm.worker.memory_peaks import resident
from dslm.worker.model import build_model, examine_weights, label_settings
from dslm.worker.portable import with_portable
from dslm.worker.ranks import Rank, release_shared_memory
from dslm.worker.reference import add_reference
from dslm.worker.tasks import task_of
from dslm.worker.tensors_only import tensors_only
from dslm.worker.verify.reduced import full_config

_JOIN_TIMEOUT = timedelta(minutes=10)  # for all ranks to have imported torch and to meet
_LONGEST_PREPARATION = timedelta(days=30)
_CPU_COMMUNICATION = "deepspeed_shm_comm"


def train(rank: Rank) -> None:
    """Train, evaluate, export; all of it recorded in the run directory."""
    given = read_assignment(rank)
    if given.on_cpu and given.recipe.model.long_context:
        give_large_blocks_back()
    join_ranks(given)
    inputs = prepare_inputs(given)
    check_same_data(given, inputs.data)
    check_packs(given, inputs)
    report = examine(given, inputs)
    expected = expected_loss(given, inputs, report)
    arguments = arguments_of(given, inputs)
    models = build_models(given, inputs, report)
    training = assemble(given, inputs, models, arguments)
    if reference_of(given.recipe) == "precomputed":
        again = partial(build_reference, given, inputs, report)
        add_reference(given, inputs, training.trainer, again)
    if expected is not None:
        trainer = training.trainer
        trainer.add_callback(FirstLoss(expected, given.recipe.task, trainer))
    run_steps(given, training)
    if training.stopped_early:
        finish_early(given, training)
    else:
        finish(given, inputs, training)
    dist.destroy_process_group()


def join_ranks(given: Assignment) -> None:
    """Meet the other ranks."""
    rank = given.rank
    given.phase(Phase.JOINING, number_of(rank.world_size, "rank"))
    operators = build_folder(os.environ)
    remove_dead_marks(operators)
    if given.on_cpu and not is_built(_CPU_COMMUNICATION, operators):
        given.phase(Phase.JOINING, "building a DeepSpeed operator: once, about a minute")
    deepspeed.init_distributed("gloo" if given.on_cpu else "nccl", timeout=_JOIN_TIMEOUT)
    dist.barrier()
    release_shared_memory(rank.rank)


def prepare_inputs(given: Assignment) -> Inputs:
    """Prepare the data, or find it prepared; every rank returns when all have it."""
    given.phase(Phase.DATA)
    recipe = given.recipe
    task = task_of(recipe)
    tokenizer = load_tokenizer(recipe, given.run.path / "tokenizer") if task.tokenizer else None
    encoder = task.encoder(recipe, tokenizer)
    data = prepare(recipe, encoder, tokenizer, lambda detail: given.phase(Phase.DATA, detail))
    wait_for_all()
    steps = total_steps(recipe, len(data.train)) or 1
    return Inputs(task=task, tokenizer=tokenizer, data=data, steps=steps)


def wait_for_all() -> None:
    """Wait until every rank has prepared its data: hosts may take hours, and not equally many.

    A group of its own, since the timeout of the others is to find out that a rank hangs.
    """
    if dist.get_world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=_LONGEST_PREPARATION)
        dist.barrier(group)
        dist.destroy_process_group(group)


def check_same_data(given: Assignment, data: Prepared) -> None:
    """Check that the samples are still those that the checkpoint was trained on.

    Raises:
        DataError: they aren't, so their order says nothing any more.
    """
    if not given.attempt.resumed_from:
        return
    step = given.attempt.step
    manifest = given.run.checkpoints / f"step-{step}" / MANIFEST
    if read_document(CheckpointManifest, manifest).data != data.identity:
        raise DataError(
            f"the data has changed since step {step}: samples would be seen twice, or never",
            where=Where(key="data.train"),
            hint="put it back as it was, or start a new run in another folder (`-o DIR`)",
        )


def check_packs(given: Assignment, inputs: Inputs) -> None:
    """Check that the model keeps the documents of a sample apart, where no plan knew it.

    Raises:
        RecipeError: it doesn't.
    """
    recipe = given.recipe
    plan = find_document(PlanFile, given.run.plan) or PlanFile()
    if not is_packed(recipe) or plan.model.parameters is not None:
        return
    config = full_config(recipe, inputs.tokenizer)
    if leaks(recipe, kept_apart(config, inputs.task.auto_class)):
        message, hint = refusal(str(config.model_type))
        raise RecipeError(message, where=Where(key="data.packing"), hint=hint)


def examine(given: Assignment, inputs: Inputs) -> LoadingReport | None:
    """Check what a pretrained model's files hold, before anything is partitioned."""
    settings = model_settings(inputs)
    return examine_weights(given.recipe, inputs.task.auto_class, **settings)


def build_models(given: Assignment, inputs: Inputs, report: LoadingReport | None) -> Models:
    """Build the model, and once more the same where the loss compares with how it started."""
    given.phase(Phase.MODEL)
    recipe, task = given.recipe, inputs.task
    before = resident()
    settings = model_settings(inputs)
    set_seed(recipe.seed)
    model = build_model(recipe, task.auto_class, inputs.tokenizer, report, **settings)
    put_on(model, recipe)
    share_model(model, recipe, given.layout, given.config["train_micro_batch_size_per_gpu"])
    reference = None
    if reference_of(recipe) == "model":
        reference = build_reference(given, inputs, report)
    return Models(model=model, reference=reference, resident=before)


def build_reference(given: Assignment, inputs: Inputs, report: LoadingReport | None) -> Any:
    """Build the model as it is at the start once more, without adapters."""
    recipe = given.recipe.model_copy(update={"lora": None})
    set_seed(recipe.seed)  # the same weights
    settings = model_settings(inputs)
    model = build_model(recipe, inputs.task.auto_class, inputs.tokenizer, report, **settings)
    share_head(model, recipe, given.layout)
    return model


def model_settings(inputs: Inputs) -> dict[str, Any]:
    """Return what a model's config has by its task and by the labels of the data."""
    return {**inputs.task.config, **label_settings(inputs.data.labels)}


def run_steps(given: Assignment, training: Training) -> None:
    """Train from the attempt's checkpoint, or from nothing, until the last checkpoint is complete.

    Raises:
        InputError: the checkpoint holds more than tensors, and is not trusted.
    """
    given.phase(Phase.PARTITIONING, f"ZeRO stage {given.stage}")
    # dropout: each rank draws its own, or all would drop the same of different samples; those that
    # share layers drop alike
    torch.manual_seed(given.recipe.seed + given.rank.rank // given.layout.tensor)
    checkpoint = given.attempt.resumed_from
    path = str(given.run.path / checkpoint) if checkpoint else None
    with_portable()
    mend(given.recipe)
    try:
        with nullcontext() if given.rank.attempt.trust_checkpoint else tensors_only():
            training.trainer.train(resume_from_checkpoint=path)
    except UnpicklingError as failure:
        raise InputError(
            "holds more than tensors, and loading that could run code: "
            + str(failure).strip().partition("\n")[0],
            where=Where(file=path),
            hint="`--trust-checkpoint` loads it as it is, and runs its code",
        ) from failure
    training.writer.finish()
