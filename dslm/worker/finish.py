"""The end of a training: the last evaluation and checkpoint, the exported model, a sample of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from dslm.run.directory import RunDirectory
from dslm.run.events import End
from dslm.run.words import Phase
from dslm.worker.adapters import save_adapters
from dslm.worker.assemble import Training
from dslm.worker.assignment import Assignment, Inputs
from dslm.worker.layout.whole import whole_model
from dslm.worker.model_card import model_card
from dslm.worker.model_config import set_cache

_SAMPLE_TOKENS = 60


def finish_early(given: Assignment, training: Training) -> None:
    """Record that the training was stopped before its last step."""
    training.events.write(
        End(**given.rank.stamp(), status="stopped", step=training.step, seconds=given.seconds)
    )


def finish(given: Assignment, inputs: Inputs, training: Training) -> None:
    """After the last step: evaluate, save, export, show a sample."""
    trainer, model = training.trainer, given.run.model
    if trainer.eval_dataset is not None and trainer.evaluated[0] != training.step:
        given.phase(Phase.EVALUATING)
        trainer.evaluate()
    if training.writer.last_step != training.step:
        given.phase(Phase.SAVING)
        trainer.save_now()
        training.writer.finish()
    given.phase(Phase.EXPORTING)
    export(trainer, inputs.tokenizer, model)
    sample = _sample(given, inputs)
    dist.barrier()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    training.events.write(
        End(
            **given.rank.stamp(),
            status="done",
            step=training.step,
            loss=losses[-1] if losses else None,
            seconds=given.seconds,
            model=model.name,
            sample=sample,
        )
    )


def export(trainer: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write the model in Hugging Face format, whole or not at all; all ranks call."""
    state = (
        whole_model(trainer.model_wrapped)
        if trainer.layout.shares_parameters
        else trainer.accelerator.get_state_dict(trainer.model_wrapped)
    )
    if dist.get_rank() == 0:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed while exporting
        model = trainer.accelerator.unwrap_model(trainer.model)
        set_cache(model.config, on=True)
        save_adapters(model, state, partial)
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


def _sample(given: Assignment, inputs: Inputs) -> str | None:
    """Return the sample that the recipe asks for, on rank 0, of a model that generates text."""
    prompt = given.recipe.evaluation.sample
    generates = inputs.task.auto_class == "AutoModelForCausalLM" and inputs.tokenizer is not None
    if prompt is None or not generates or given.rank.rank:
        return None
    return generate_sample(given.run.model, prompt)
