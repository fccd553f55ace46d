"""The trainer of a task by itself, without DeepSpeed: it evaluates as it did in a run.

A recipe, a trained model and samples in; TRL's trainer out. Knows no run directory.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from dslm.recipe.schema import Recipe
from dslm.worker.data.store import Samples
from dslm.worker.layout.ranks import Layout
from dslm.worker.model import build_model
from dslm.worker.tasks.base import Task

LAYOUT = Layout(world_size=1, rank=0)


def trainer_alone(
    recipe: Recipe,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    samples: Samples,
    reference: PreTrainedModel | None,
) -> Any:
    """Make the trainer of a task that has one of its own; it trains nothing."""
    if task.trainer is None:
        raise ValueError("the task has no trainer of its own")
    base, kind = task.trainer()
    known: dict[str, Any] = kind.__dataclass_fields__  # type: ignore[attr-defined]
    own = set(known) - set(TrainingArguments.__dataclass_fields__)
    alone: dict[str, object] = {"precompute_ref_log_probs": False, "use_vllm": False}
    if recipe.task == "grpo":
        alone["beta"] = 0.0  # no penalty: an evaluation is of rewards alone
    with tempfile.TemporaryDirectory() as folder:  # it makes its folder when it is made
        arguments = kind(
            output_dir=folder,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            disable_tqdm=True,
            seed=recipe.seed,
            per_device_train_batch_size=recipe.rollout.group,  # GRPO's holds whole groups
            **{
                **task.arguments(recipe),
                **{name: value for name, value in recipe.training_args.items() if name in own},
                **{name: value for name, value in alone.items() if name in known},
            },
        )
        return base(
            model=model,
            args=arguments,
            data_collator=task.collator(recipe, tokenizer, model.config),
            train_dataset=samples.as_dataset(),
            processing_class=tokenizer,
            **task.made_with(recipe, None, LAYOUT, 0),
            **({"ref_model": reference} if reference is not None else {}),
        )


def reference_again(
    recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    """Build the model as it was at the start of a run."""
    existing = recipe.lora if recipe.lora is not None and recipe.lora.adapter else None
    plain = recipe.model_copy(update={"lora": existing, "quantize": None})
    set_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return build_model(plain, task.auto_class, tokenizer, **task.config).eval().to(device)
