"""Checks on what is handed on: `training_args`, the `deepspeed` section, schedule, trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

from dslm.codec import Json
from dslm.decide.checks import facts
from dslm.decide.checks.base import ALL, TRAINING, Case, Check, Problem
from dslm.errors import did_you_mean
from dslm.zero.generate import leaves
from dslm.zero.lint import known

_ARGUMENTS = {
    "sft": "trl.SFTConfig",
    "dpo": "trl.DPOConfig",
    "orpo": "trl.experimental.orpo.ORPOConfig",
    "kto": "trl.KTOConfig",
    "reward": "trl.RewardConfig",
    "grpo": "trl.GRPOConfig",
}
# Arguments of the Trainer that a key of the recipe decides: two words for one thing, of which one
# would lose. "" where dslm does the whole thing itself, so that the argument would have no effect.
_DECIDED = {
    "output_dir": "--output",
    "resume_from_checkpoint": "--resume",
    "deepspeed": "deepspeed",
    "max_steps": "duration.steps",
    "num_train_epochs": "duration.epochs",
    "per_device_train_batch_size": "batch.micro_size",
    "per_device_eval_batch_size": "batch.micro_size",
    "gradient_accumulation_steps": "batch.global_size",
    "auto_find_batch_size": "batch.micro_size: auto",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "max_grad_norm": "optimizer.grad_clip",
    "optim": "optimizer.name",
    "lr_scheduler_type": "schedule.name",
    "warmup_steps": "schedule.warmup",
    "bf16": "precision",
    "fp16": "precision",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "`DS_ACCELERATOR=cpu` in your environment",
    "torch_compile": "model.compile",
    "use_liger_kernel": "model.liger",
    "gradient_checkpointing": "model.activation_checkpointing",
    "activation_checkpointing": "model.activation_checkpointing",
    "logging_steps": "log.every",
    "logging_strategy": "log.every",
    "report_to": "log.report_to",
    "save_strategy": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "save_only_model": "checkpoint",
    "load_best_model_at_end": "checkpoint.keep_best",
    "metric_for_best_model": "checkpoint.keep_best",
    "greater_is_better": "checkpoint.keep_best",
    "eval_strategy": "evaluation.every",
    "eval_steps": "evaluation.every",
    "dataloader_num_workers": "data.workers",
    "dataloader_drop_last": "",
    "dataloader_pin_memory": "",
    "dataloader_persistent_workers": "",
    "dataloader_prefetch_factor": "",
    "dataloader_multiprocessing_context": "",
    "dataloader_in_order": "",
    "train_sampling_strategy": "",
    "length_column_name": "",
    "remove_unused_columns": "",
    "ignore_data_skip": "",
    "do_train": "",
    "do_eval": "",
    "do_predict": "",
    "local_rank": "",
    "fsdp": "parallel.zero_stage",
    "fsdp_config": "parallel.zero_stage",
    "push_to_hub": "`dslm export RUN --push-to-hub`",
    "max_length": "data.sequence_length",
    "max_completion_length": "rollout.max_tokens, or data.sequence_length",
    "num_generations": "rollout.group",
    "num_generations_eval": "",
    "num_iterations": "rollout.rounds",
    "steps_per_generation": "",
    "generation_batch_size": "",
    "generation_kwargs": "",
    "shuffle_dataset": "",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "use_vllm": "rollout.engine",
    "vllm_mode": "rollout.engine",
    "use_transformers_continuous_batching": "rollout.engine",
    "reward_weights": "rewards",
    "log_completions": "rollout.keep",
    "precompute_ref_log_probs": "reference",
    "precompute_ref_batch_size": "batch.micro_size",
    "generate_during_eval": "evaluation.sample",
    "packing": "data.packing",
    "padding_free": "data.packing",
    "dataset_kwargs": "",
    "dataset_text_field": "data.text_field",
    "model_init_kwargs": "model",
    "trust_remote_code": "model.trust_remote_code",
}
# Keys of the DeepSpeed config that a key of the recipe decides, or what follows from one.
_OF_THE_RECIPE = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.micro_size",
    "gradient_accumulation_steps": "batch.micro_size",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer.params.lr": "optimizer.lr",
    "optimizer.params.betas": "optimizer.betas",
    "optimizer.params.eps": "optimizer.eps",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "scheduler.params.warmup_max_lr": "optimizer.lr",
    "scheduler.params.warmup_num_steps": "schedule.warmup",
    "scheduler.params.total_num_steps": "duration",
    "bf16.enabled": "precision",
    "bfloat16.enabled": "precision",
    "fp16.enabled": "precision",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer.device": "parallel.offload",
    "zero_optimization.offload_param.device": "parallel.offload",
    "zero_optimization.offload_optimizer.nvme_path": "parallel.nvme_path",
    "zero_optimization.offload_param.nvme_path": "parallel.nvme_path",
    "tensor_parallel.autotp_size": "parallel.tensor",
    "sequence_parallel_size": "parallel.sequence",
}
_OFFLOADED = {
    "offload_optimizer": {"none": "none", "optimizer": "cpu", "all": "cpu", "nvme": "nvme"},
    "offload_param": {"none": "none", "optimizer": "none", "all": "cpu", "nvme": "nvme"},
}
# The package of each tracker that transformers has; an extra of those that dslm's help names.
_TRACKERS = {
    "tensorboard": ("tensorboard", "pip install 'dslm[tensorboard]'"),
    "wandb": ("wandb", "pip install 'dslm[wandb]'"),
    "mlflow": ("mlflow", "pip install 'dslm[mlflow]'"),
    "trackio": ("trackio", "pip install 'dslm[trackio]'"),
    "comet_ml": ("comet_ml", "pip install comet-ml"),
    "swanlab": ("swanlab", "pip install swanlab"),
    "azure_ml": ("azureml", "pip install azureml-core"),
    "neptune": ("neptune", "pip install neptune"),
    "codecarbon": ("codecarbon", "pip install codecarbon"),
    "clearml": ("clearml", "pip install clearml"),
    "dagshub": ("dagshub", "pip install dagshub"),
    "flyte": ("flytekit", "pip install flytekit"),
    "dvclive": ("dvclive", "pip install dvclive"),
}


def _training_args(case: Case) -> Iterator[Problem]:
    kind = _ARGUMENTS.get(case.recipe.task, "transformers.TrainingArguments")
    arguments = facts.arguments(kind)
    for name, value in case.recipe.training_args.items():
        key = f"training_args.{name}"
        decided = _DECIDED.get(name)
        if name not in arguments:
            if facts.complete() and facts.complete("trl"):
                hint = did_you_mean(name, set(arguments) - set(_DECIDED))
                yield Problem(key=key, message=f"{kind} has no `{name}`", hint=hint)
        elif decided is not None:
            yield Problem(
                key=key,
                message=f"`{name}` is not the Trainer's to decide: "
                + (f"{_quoted(decided)} does" if decided else "dslm does that itself"),
                hint=f"use `{decided}`" if decided and " " not in decided else "leave it out",
            )
        elif not facts.is_of(value, arguments[name], exact=False):
            said = facts.said(arguments[name])
            text = f"`{name}` of the Trainer must be {said}, not {value!r}"
            yield Problem(key=key, message=text)


def _quoted(decided: str) -> str:
    """A key in quotes; a phrase has its own."""
    return decided if "`" in decided else f"`{decided}`"


def _deepspeed(case: Case) -> Iterator[Problem]:
    """Find values of the section that contradict the recipe's own keys."""
    for path, value in leaves(case.recipe.deepspeed):
        own = _OF_THE_RECIPE.get(path)
        if own is None:
            continue
        said, known_ = _said_by_recipe(case, path)
        if known_ and value != said:
            yield Problem(
                key=f"deepspeed.{path}",
                message=f"`{path}` is {value!r} here, and {said!r} by `{own}`",
                hint=f"leave it out, and set `{own}`",
            )


def _said_by_recipe(case: Case, path: str) -> tuple[Json, bool]:
    """The value that the recipe and the plan give, and whether there is one."""
    recipe, strategy = case.recipe, case.strategy
    if strategy is None:
        return None, False
    section, _, last = path.rpartition(".")
    if last == "device":
        return _OFFLOADED[section.removeprefix("zero_optimization.")][strategy.offload], True
    values: Mapping[str, Json] = {
        "train_batch_size": recipe.batch.global_size,
        "train_micro_batch_size_per_gpu": strategy.micro_batch_size,
        "gradient_accumulation_steps": strategy.gradient_accumulation_steps,
        "gradient_clipping": recipe.optimizer.grad_clip,
        "optimizer.params.lr": recipe.optimizer.lr,
        "optimizer.params.betas": list(recipe.optimizer.betas),
        "optimizer.params.eps": recipe.optimizer.eps,
        "optimizer.params.weight_decay": recipe.optimizer.weight_decay,
        "scheduler.params.warmup_max_lr": recipe.optimizer.lr,
        "bf16.enabled": recipe.precision == "bf16",
        "bfloat16.enabled": recipe.precision == "bf16",
        "fp16.enabled": recipe.precision == "fp16",
        "zero_optimization.stage": strategy.zero_stage,
        "zero_optimization.offload_optimizer.nvme_path": recipe.parallel.nvme_path,
        "zero_optimization.offload_param.nvme_path": recipe.parallel.nvme_path,
        "tensor_parallel.autotp_size": strategy.tensor_parallel,
        "sequence_parallel_size": strategy.sequence_parallel,
    }
    return values.get(path), path in values


def _deepspeed_optimizer(case: Case) -> Iterator[Problem]:
    section = case.recipe.deepspeed.get("optimizer")
    name = section.get("type") if isinstance(section, dict) else None
    if not isinstance(name, str):
        return
    own = known()["keys"]["optimizer"]["keys"]["params"]["by_type"]
    others = facts.names("optimizers")
    if name.lower() not in own and name not in others and facts.complete("torch"):
        spelt = {each.lower(): each for each in (*own, *others)}
        near = did_you_mean(name.lower(), spelt)
        yield Problem(
            key="deepspeed.optimizer.type",
            message=f"neither DeepSpeed nor torch has an optimizer `{name}`",
            hint=near and f"did you mean `{spelt[near.split('`')[1]]}`?",
        )


def _schedule(case: Case) -> Iterator[Problem]:
    if case.recipe.schedule.name != "cosine_with_min_lr":
        return
    given = case.recipe.training_args.get("lr_scheduler_kwargs")
    names = set(given) if isinstance(given, dict) else set()
    if not names & {"min_lr", "min_lr_rate"}:
        yield Problem(
            key="schedule.name",
            message="`cosine_with_min_lr` needs to know how low the learning rate ends",
            hint="`--set training_args.lr_scheduler_kwargs.min_lr_rate=0.1`: a tenth of the peak",
        )


def _trackers(case: Case) -> Iterator[Problem]:
    trackers = facts.names("trackers")
    for name in case.recipe.log.report_to:
        if name not in trackers:
            if name not in ("all", "none") and facts.complete():
                yield Problem(
                    key="log.report_to",
                    message=f"there is no tracker `{name}`",
                    hint=did_you_mean(name, trackers) or f"known: {', '.join(trackers)}",
                )
            continue
        package, way = _TRACKERS.get(name, ("", ""))
        if case.here and package and importlib.util.find_spec(package) is None:
            yield Problem(
                key="log.report_to",
                message=f"the tracker {name} is not installed",
                hint=way,
            )


CHECKS = (
    Check(
        name="arguments that the Trainer has, and that are its to decide",
        looks_at="training_args",
        judge=_training_args,
        verbs=TRAINING,
    ),
    Check(
        name="a `deepspeed` section that agrees with the recipe",
        looks_at="deepspeed",
        judge=_deepspeed,
        verbs=ALL,
        planned=True,
    ),
    Check(
        name="an optimizer that there is",
        looks_at="deepspeed.optimizer.type",
        judge=_deepspeed_optimizer,
        verbs=ALL,
    ),
    Check(
        name="a schedule that is complete",
        looks_at="schedule.name, training_args.lr_scheduler_kwargs",
        judge=_schedule,
        verbs=TRAINING,
    ),
    Check(
        name="trackers that there are",
        looks_at="log.report_to",
        judge=_trackers,
        verbs=TRAINING,
    ),
)
