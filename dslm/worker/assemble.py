"""The Trainer of a run with all that goes along: sampler, checkpoints, events, guards."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from dslm import environment
from dslm.run.directory import RunDirectory
from dslm.run.documents import CheckpointManifest, PlanFile, find_document
from dslm.run.events import Start
from dslm.run.manifest import versions
from dslm.run.skipped import read_skipped
from dslm.worker.arguments import training_arguments
from dslm.worker.assignment import Assignment, Inputs, Models
from dslm.worker.callbacks import Events
from dslm.worker.checkpoint import CheckpointWriter
from dslm.worker.data.order import GlobalBatchSampler, Share
from dslm.worker.evaluate import by_metric
from dslm.worker.guards import Guards
from dslm.worker.model import liger
from dslm.worker.portable import is_portable
from dslm.worker.progress import sizes
from dslm.worker.trainer import run_trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A Trainer that is ready, and what is asked of it when it has ended."""

    trainer: Any
    events: Events
    writer: CheckpointWriter
    guards: Guards
    steps: int

    @property
    def step(self) -> int:
        """The last optimizer step that was made."""
        return int(self.trainer.state.global_step)

    @property
    def stopped_early(self) -> bool:
        """Whether somebody stopped it before its last step."""
        return self.guards.stopped and self.step < self.steps


def arguments_of(given: Assignment, inputs: Inputs) -> TrainingArguments:
    """Return the arguments of the Trainer; transformers partitions models while they are alive."""
    _let_trackers_write_into(given.run)
    _, kind = _classes(given, inputs)
    return training_arguments(
        given.recipe,
        given.config,
        given.run,
        steps=inputs.steps,
        on_cpu=given.on_cpu,
        liger=liger(given.recipe),
        kind=kind,
        extra=inputs.task.arguments(given.recipe) if _own_trainer(given, inputs) else {},
    )


def assemble(
    given: Assignment, inputs: Inputs, models: Models, arguments: TrainingArguments
) -> Training:
    """Put the Trainer together."""
    recipe, task, data = given.recipe, inputs.task, inputs.data
    events = Events(given, _start(given, inputs, models), models.resident)
    writer = _writer(given, inputs, events.on_checkpoint)
    sampler = _sampler(given, inputs)
    guards = Guards(given, sampler)
    own_data = not _own_trainer(given, inputs)
    trainer = run_trainer(_classes(given, inputs)[0])(
        given=given,
        sampler=sampler,
        collate=task.collator(recipe, inputs.tokenizer, models.model.config),
        measure=task.measure or by_metric(task.metric(recipe, len(data.labels))),
        events=events,
        writer=writer,
        model=models.model,
        args=arguments,
        train=task.view(data.train),
        evaluation=task.view(data.eval) if data.eval is not None else None,
        train_dataset=data.train if own_data else data.train.as_dataset(),
        eval_dataset=data.eval if own_data or not data.eval else data.eval.as_dataset(),
        **({"compute_loss_func": task.loss} if task.loss else {}),
        processing_class=inputs.tokenizer,
        **task.made_with(recipe, given.rank, given.layout, given.attempt.step),
        **({"ref_model": models.reference} if models.reference is not None else {}),
    )
    trainer.watch(guards)
    return Training(
        trainer=trainer, events=events, writer=writer, guards=guards, steps=inputs.steps
    )


def share_of(given: Assignment) -> Share:
    """Return the share of each step's samples that this rank reads."""
    return Share(
        rank=given.layout.data_rank,
        world_size=given.layout.data_size,
        sharding=given.recipe.data.sharding,
    )


def _classes(given: Assignment, inputs: Inputs) -> tuple[type, type]:
    """Return the class of the Trainer and of its arguments."""
    own = _own_trainer(given, inputs)
    return own() if own is not None else (Trainer, TrainingArguments)


def _own_trainer(given: Assignment, inputs: Inputs) -> Callable[[], tuple[type, type]] | None:
    """Return what gives a task's own Trainer, if it has one.

    TRL's for answers computes its loss from hidden states and the head, of which ranks that share
    layers or sequences have parts; the model's own loss of the same labels is the same.
    """
    shares = given.layout.sharing > 1
    return None if shares and given.recipe.task == "sft" else inputs.task.trainer


def _sampler(given: Assignment, inputs: Inputs) -> GlobalBatchSampler:
    return inputs.task.sampler(given.recipe)(
        count=len(inputs.data.train),
        seed=given.recipe.seed,
        steps=inputs.steps,
        micro_batch=given.config["train_micro_batch_size_per_gpu"],
        accumulation=given.config["gradient_accumulation_steps"],
        share=share_of(given),
        start_step=given.attempt.step,
        skipped=read_skipped(given.run),
    )


def _writer(
    given: Assignment, inputs: Inputs, on_complete: Callable[..., None]
) -> CheckpointWriter:
    attempt, layout = given.rank.attempt, given.layout
    facts = CheckpointManifest(
        step=0,
        world_size=given.rank.world_size,
        zero_stage=given.stage,
        tensor=layout.tensor,
        sequence=layout.sequence,
        expert=layout.expert,
        portable=is_portable(given.recipe.checkpoint, layout),
        global_batch=given.recipe.batch.global_size,
        data=inputs.data.identity,
        versions=versions(),
    )
    return CheckpointWriter(
        given.run,
        given.recipe.checkpoint,
        facts,
        on_complete,
        local_ranks=dict(attempt.hosts)[attempt.host_of(given.rank.rank)],
        shared=not attempt.hosts_without_run_dir,
    )


def _start(given: Assignment, inputs: Inputs, models: Models) -> Start:
    """The start event, as far as it is known before there is a Trainer."""
    recipe = given.recipe
    plan = find_document(PlanFile, given.run.plan) or PlanFile()
    parameters, trained = sizes(models.model)
    return Start(
        **given.rank.stamp(),
        world_size=given.rank.world_size,
        precision=recipe.precision,
        parameters=parameters,
        trained_parameters=trained,
        device="cpu" if given.on_cpu else torch.cuda.get_device_name(),
        tokens_per_sample=recipe.data.sequence_length if recipe.task != "vision" else 0,
        samples=len(inputs.data.train),
        data=inputs.data.summary(),
        flops_per_token=plan.model.flops_per_token,
        peak_flops=plan.cluster.peak_flops,
    )


def _let_trackers_write_into(run: RunDirectory) -> None:
    """Let trackers write below the run directory, unless they are told otherwise."""
    os.environ.setdefault(environment.WANDB, str(run.path))
    os.environ.setdefault(environment.TENSORBOARD, str(run.path / "tensorboard"))
    os.environ.setdefault(environment.TRACKIO, str(run.path / "trackio"))
    if environment.MLFLOW not in os.environ:
        os.environ[environment.MLFLOW] = (run.path / "mlruns").absolute().as_uri()
        os.environ.setdefault(environment.MLFLOW_FILES, "true")
