"""From recipe and DeepSpeed config to transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from dslm.errors import RecipeError, Where, did_you_mean
from dslm.recipe.duration import warmup_steps
from dslm.recipe.schema import Recipe
from dslm.run.directory import RunDirectory

_SCHEDULES = {"constant": "constant_with_warmup"}
_OPTIMIZERS = {"adafactor": "adafactor", "sgd": "sgd"}


def training_arguments(
    recipe: Recipe,
    config: dict[str, Any],
    run: RunDirectory,
    *,
    steps: int,
    on_cpu: bool,
    liger: bool,
    kind: type = TrainingArguments,
    extra: Mapping[str, Any] | None = None,
) -> Any:
    """Return the arguments of a run.

    Args:
        recipe: the resolved recipe.
        config: the resolved DeepSpeed config.
        run: where the trackers write.
        steps: optimizer steps.
        on_cpu: train without an accelerator.
        liger: use Liger kernels.
        kind: transformers' TrainingArguments, or TRL's of a task.
        extra: what the task adds.

    Raises:
        RecipeError: `training_args` holds a name that `kind` doesn't know.
    """
    values: dict[str, Any] = {
        **_optimization(recipe, steps),
        **_rhythm(recipe, steps),
        "output_dir": str(run.checkpoints),
        "per_device_train_batch_size": config["train_micro_batch_size_per_gpu"],
        "per_device_eval_batch_size": config["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "seed": recipe.seed,
        # transformers compares this number with one that counts ranks of a shared batch twice
        "deepspeed": {k: v for k, v in config.items() if k != "train_batch_size"},
        "ignore_data_skip": True,  # the sampler itself starts at the right step
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "gradient_checkpointing": bool(recipe.model.activation_checkpointing),
        "use_liger_kernel": liger,
        "torch_compile": recipe.model.compile or recipe.model.deepcompile,
        "use_cpu": on_cpu,
    }
    if recipe.model.activation_checkpointing:
        away = {"offload": True} if recipe.model.offload_activations is True else {}
        values["gradient_checkpointing_kwargs"] = {"use_reentrant": False, **away}
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    for name in recipe.training_args:
        if name not in known:
            raise RecipeError(
                f"{kind.__module__.partition('.')[0]}.{kind.__name__} has no `{name}`",
                where=Where(key=f"training_args.{name}"),
                hint=did_you_mean(name, known),
            )
    return kind(**{**values, **(extra or {}), **recipe.training_args})


def _optimization(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return the arguments of optimizer, schedule and number format."""
    optimizer = recipe.optimizer
    return {
        "max_steps": steps,
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "max_grad_norm": optimizer.grad_clip,
        "optim": _OPTIMIZERS.get(optimizer.name, "adamw_torch"),
        "lr_scheduler_type": _SCHEDULES.get(recipe.schedule.name, recipe.schedule.name),
        "warmup_steps": warmup_steps(recipe, steps),
        "bf16": recipe.precision == "bf16" and not recipe.autocast,
        "fp16": recipe.precision == "fp16" and not recipe.autocast,
    }


def _rhythm(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return the arguments that say after which steps something is logged, saved, evaluated."""
    every = recipe.checkpoint.every
    return {
        "logging_steps": recipe.log.every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if every else "no",
        "save_steps": every or steps,
        "eval_strategy": "steps" if recipe.evaluation.every else "no",
        "eval_steps": recipe.evaluation.every,
        "report_to": recipe.log.report_to or "none",
    }
