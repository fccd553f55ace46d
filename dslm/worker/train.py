"""One training on one rank, from the resolved recipe to the exported model.

The order matters: the process group first, then TrainingArguments, then the model, or ZeRO-3 can't
partition it as it is made.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from dslm import environment
from dslm.errors import DataError, InputError, Where
from dslm.recipe.duration import total_steps
from dslm.recipe.load import read_resolved
from dslm.recipe.schema import Recipe
from dslm.run.checkpoints import MANIFEST
from dslm.run.directory import RunDirectory
from dslm.run.documents import CheckpointManifest, PlanFile, find_document, read_document
from dslm.run.events import End, Start
from dslm.run.events import Phase as PhaseEvent
from dslm.run.manifest import read_manifest, versions
from dslm.run.words import Phase
from dslm.worker.arguments import training_arguments
from dslm.worker.callbacks import Events, Stop
from dslm.worker.checkpoint import CheckpointWriter
from dslm.worker.data.order import GlobalBatchSampler
from dslm.worker.data.prepare import Prepared, prepare
from dslm.worker.data.tokenizer import load_tokenizer
from dslm.worker.extension_builds import build_folder, is_built, remove_dead_marks
from dslm.worker.memory_peaks import resident
from dslm.worker.model import build_model, label_settings, liger
from dslm.worker.model_card import model_card
from dslm.worker.ranks import Rank, release_shared_memory
from dslm.worker.tasks import task_of
from dslm.worker.tensors_only import tensors_only
from dslm.worker.trainer import run_trainer

_JOIN_TIMEOUT = timedelta(minutes=10)  # for all ranks to have imported torch and to meet
_LONGEST_PREPARATION = timedelta(days=30)
_SAMPLE_TOKENS = 60
_CPU_COMMUNICATION = "deepspeed_shm_comm"


def train(rank: Rank) -> None:
    """Train, evaluate, export; all of it recorded in the run directory."""
    began = time.monotonic()
    run = rank.run
    recipe = read_resolved(run.recipe)
    config = json.loads(run.ds_config.read_text(encoding="utf-8"))

    def phase(what: str, detail: str = "") -> None:
        rank.guard.note(phase=Phase(what))
        if rank.rank == 0:
            rank.record(PhaseEvent(**rank.stamp(), phase=what, detail=detail))

    on_cpu = not torch.cuda.is_available()
    phase("joining", f"{rank.world_size} ranks")
    _join(rank, phase, on_cpu=on_cpu)

    phase("data")
    task = task_of(recipe)
    tokenizer = load_tokenizer(recipe, run.path / "tokenizer") if task.tokenizer else None
    encoder = task.encoder(recipe, tokenizer)
    data = prepare(recipe, encoder, tokenizer, lambda detail: phase("data", detail))
    wait_for_all()
    steps = total_steps(recipe, len(data.train)) or 1
    base, kind = task.trainer() if task.trainer else (Trainer, TrainingArguments)
    _let_trackers_write_into(run)
    arguments = training_arguments(
        recipe,
        config,
        run,
        steps=steps,
        on_cpu=on_cpu,
        liger=liger(recipe),
        kind=kind,
        extra=task.arguments,
    )
    phase("model")
    process = resident()
    set_seed(recipe.seed)
    settings = label_settings(data.labels)
    model = build_model(recipe, task.auto_class, tokenizer, **settings)
    more: dict[str, Any] = {}
    if task.reference and recipe.lora is None:
        set_seed(recipe.seed)  # the same weights once more
        more["ref_model"] = build_model(recipe, task.auto_class, tokenizer, **settings)

    start = read_manifest(run).attempts[rank.attempt.number - 1]
    if start.resumed_from:
        _check_same_data(run, data, start.step)
    sampler = GlobalBatchSampler(
        count=len(data.train),
        seed=recipe.seed,
        steps=steps,
        micro_batch=config["train_micro_batch_size_per_gpu"],
        accumulation=config["gradient_accumulation_steps"],
        rank=rank.rank,
        world_size=rank.world_size,
        sharding=recipe.data.sharding,
        start_step=start.step,
    )
    stage = config["zero_optimization"]["stage"]
    events = Events(rank, recipe, _start(rank, recipe, model, data), process)
    writer = CheckpointWriter(
        run,
        recipe.checkpoint,
        CheckpointManifest(
            step=0,
            world_size=rank.world_size,
            zero_stage=stage,
            global_batch=recipe.batch.global_size,
            data=data.identity,
            versions=versions(),
        ),
        events.on_checkpoint,
        local_ranks=dict(rank.attempt.hosts)[rank.attempt.host_of(rank.rank)],
        shared=not rank.attempt.hosts_without_run_dir,
    )
    stop = Stop(rank, save=recipe.checkpoint.on_stop)
    trainer = run_trainer(base)(
        recipe=recipe,
        sampler=sampler,
        collate=task.collator(recipe, tokenizer, model.config),
        metric=task.metric(recipe, len(data.labels)) if task.metric else None,
        events=events,
        writer=writer,
        model=model,
        args=arguments,
        train=data.train,
        evaluation=data.eval,
        train_dataset=data.train.as_dataset() if task.trainer else data.train,
        eval_dataset=data.eval.as_dataset() if task.trainer and data.eval else data.eval,
        **({"compute_loss_func": task.loss} if task.loss else {}),
        processing_class=tokenizer,
        **more,
    )
    trainer.add_callback(stop)
    phase("partitioning", f"ZeRO stage {stage}")
    _train(trainer, rank, start.resumed_from)
    writer.finish()
    if stop.stopped and trainer.state.global_step < steps:
        events.write(
            End(
                **rank.stamp(),
                status="stopped",
                step=trainer.state.global_step,
                seconds=round(time.monotonic() - began, 3),
            )
        )
        dist.destroy_process_group()
        return
    _finish(rank, recipe, trainer, tokenizer, events, writer, began)
    dist.destroy_process_group()


def _join(rank: Rank, phase: Callable[[str, str], None], *, on_cpu: bool) -> None:
    """Meet the other ranks."""
    operators = build_folder(os.environ)
    remove_dead_marks(operators, alone=len(rank.attempt.hosts) == 1)
    if on_cpu and not is_built(_CPU_COMMUNICATION, operators):
        phase("joining", "building a DeepSpeed operator: once, about a minute")
    deepspeed.init_distributed("gloo" if on_cpu else "nccl", timeout=_JOIN_TIMEOUT)
    dist.barrier()
    release_shared_memory(rank)


def _start(rank: Rank, recipe: Recipe, model: torch.nn.Module, data: Prepared) -> Start:
    """The start event, as far as it is known before there is a Trainer."""
    plan = find_document(PlanFile, rank.run.plan) or PlanFile()
    on_cuda = torch.cuda.is_available()
    return Start(
        **rank.stamp(),
        world_size=rank.world_size,
        precision=recipe.precision,
        parameters=sum(_size(p) for p in model.parameters()),
        trained_parameters=sum(_size(p) for p in model.parameters() if p.requires_grad),
        device=torch.cuda.get_device_name() if on_cuda else "cpu",
        tokens_per_sample=recipe.data.sequence_length if recipe.task != "vision" else 0,
        samples=len(data.train),
        data=data.summary(),
        flops_per_token=plan.model.flops_per_token,
        peak_flops=plan.cluster.peak_flops,
    )


def wait_for_all() -> None:
    """Wait until every rank has prepared its data: hosts may take hours, and not equally many.

    A group of its own, since the timeout of the others is to find out that a rank hangs.
    """
    if dist.get_world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=_LONGEST_PREPARATION)
        dist.barrier(group)
        dist.destroy_process_group(group)


def _check_same_data(run: RunDirectory, data: Prepared, step: int) -> None:
    """Check that the samples are still those that the run was trained on until a step.

    Raises:
        DataError: they aren't, so their order says nothing any more.
    """
    manifest = run.checkpoints / f"step-{step}" / MANIFEST
    if read_document(CheckpointManifest, manifest).data != data.identity:
        raise DataError(
            f"the data has changed since step {step}: samples would be seen twice, or never",
            where=Where(key="data.train"),
            hint="put it back as it was, or start a new run in another folder (`-o DIR`)",
        )


def _finish(
    rank: Rank,
    recipe: Recipe,
    trainer: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    events: Events,
    writer: CheckpointWriter,
    began: float,
) -> None:
    """After the last step: evaluate, save, export, show a sample."""
    step = trainer.state.global_step
    if trainer.eval_dataset is not None and trainer.evaluated[0] != step:
        events.phase("evaluating")
        trainer.evaluate()
    if writer.last_step != step:
        events.phase("saving")
        trainer.save_now()
        writer.finish()
    events.phase("exporting")
    export(trainer, tokenizer, rank.run.model)
    sample = None
    generates = task_of(recipe).auto_class == "AutoModelForCausalLM" and tokenizer is not None
    if recipe.evaluation.sample is not None and generates and rank.rank == 0:
        sample = generate_sample(rank.run.model, recipe.evaluation.sample)
    dist.barrier()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    events.write(
        End(
            **rank.stamp(),
            status="done",
            step=step,
            loss=losses[-1] if losses else None,
            seconds=round(time.monotonic() - began, 3),
            model=rank.run.model.name,
            sample=sample,
        )
    )


def export(trainer: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write the model in Hugging Face format, whole or not at all; all ranks call."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if dist.get_rank() == 0:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed while exporting
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.config.use_cache = True
        model.save_pretrained(partial, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        adapters = hasattr(model, "peft_config")
        step = trainer.state.global_step
        card = model_card(RunDirectory(folder.parent), step, adapters=adapters)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if folder.is_dir():  # of an attempt that was killed after it
            shutil.rmtree(folder)
        partial.replace(folder)
    dist.barrier()


def generate_sample(folder: Path, prompt: str) -> str:
    """A greedy continuation of a prompt by an exported causal model, as a first look at it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 it would be partitioned, over ranks that don't load
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    tokens = model.generate(
        **inputs,
        max_new_tokens=_SAMPLE_TOKENS,
        do_sample=False,
        repetition_penalty=1.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


def _size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also of one that ZeRO-3 has partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _let_trackers_write_into(run: RunDirectory) -> None:
    os.environ.setdefault(environment.WANDB, str(run.path))
    os.environ.setdefault(environment.TENSORBOARD, str(run.path / "tensorboard"))


def _train(trainer: Any, rank: Rank, checkpoint: str | None) -> None:
    """Train from a checkpoint, or from nothing.

    Raises:
        InputError: the checkpoint holds more than tensors, and is not trusted.
    """
    path = str(rank.run.path / checkpoint) if checkpoint else None
    try:
        with nullcontext() if rank.attempt.trust_checkpoint else tensors_only():
            trainer.train(resume_from_checkpoint=path)
    except UnpicklingError as failure:
        raise InputError(
            "holds more than tensors, and loading that could run code: "
            + str(failure).strip().partition("\n")[0],
            where=Where(file=path),
            hint="`--trust-checkpoint` loads it as it is, and runs its code",
        ) from failure
