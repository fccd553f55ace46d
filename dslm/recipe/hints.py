"""Suggestions for a wrong key: the nearest one of its section, or another tool's word for one.

Names in, a sentence out; knows no files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dslm.errors import did_you_mean, shortened

# The key of a recipe, and what other tools call it: Axolotl, LLaMA-Factory, TRL and transformers,
# torchtune, accelerate, ms-swift, DeepSpeed.
_WORDS: dict[str, tuple[str, ...]] = {
    "model.name": (
        "base_model", "model_name_or_path", "model_name", "pretrained_model_name_or_path",
        "model_id", "model_path", "pretrained_model", "checkpoint_dir",
    ),
    "model.tokenizer": ("tokenizer_name", "tokenizer_name_or_path", "tokenizer_path"),
    "model.revision": ("model_revision", "revision_of_model"),
    "model.attention": (
        "attn_implementation", "flash_attention", "flash_attn", "use_flash_attention_2",
        "use_flash_attn", "attn_impl", "sdp_attention", "xformers_attention",
    ),
    "model.activation_checkpointing": (
        "gradient_checkpointing", "use_gradient_checkpointing", "enable_activation_checkpointing",
        "disable_gradient_checkpointing", "enable_gradient_checkpointing",
    ),
    "model.compile": ("torch_compile",),
    "model.tiled_mlp": ("use_tiled_mlp", "tiled_mlp_compute"),
    "model.offload_activations": (
        "activation_offloading", "enable_activation_offloading", "activation_cpu_offload",
    ),
    "model.liger": ("use_liger_kernel", "use_liger", "liger_kernel", "enable_liger_kernel"),
    "task": ("finetuning", "training_type", "trainer_type", "rl", "rlhf_type", "trainer"),
    "data.train": (
        "datasets", "dataset", "dataset_name", "dataset_path", "data_path", "train_file",
        "train_files", "train_dataset", "train_data", "dataset_dir", "data_files", "data_dir",
    ),
    "data.eval": (
        "val_set_size", "eval_dataset", "val_dataset", "validation_file", "validation_split",
        "test_size", "val_size", "test_datasets", "eval_file", "split_dataset_ratio",
    ),
    "data.sequence_length": (
        "cutoff_len", "sequence_len", "max_seq_length", "max_seq_len", "max_length", "seq_len",
        "seq_length", "model_max_length", "block_size", "context_length", "max_sequence_length",
    ),
    "data.packing": ("sample_packing", "packed", "pack", "neat_packing"),
    "data.text_field": ("dataset_text_field", "text_column", "field", "text_column_name"),
    "data.label_field": ("label_column", "label_names", "label_column_name"),
    "data.max_documents": ("max_samples", "max_train_samples"),
    "data.workers": ("dataloader_num_workers", "num_workers", "preprocessing_num_workers"),
    "data.mlm_probability": ("mask_probability", "masking_probability"),
    "batch.global_size": (
        "train_batch_size", "global_batch_size", "total_batch_size", "effective_batch_size",
        "gradient_accumulation_steps", "gradient_accumulation", "grad_accum", "accum_steps",
    ),
    "batch.micro_size": (
        "per_device_train_batch_size", "per_device_batch_size", "micro_batch_size", "batch_size",
        "train_micro_batch_size_per_gpu", "micro_batch", "bsz", "device_batch_size",
    ),
    "parallel.zero_stage": ("zero_optimization", "zero", "zero3", "zero_level"),
    "parallel.offload": ("offload_optimizer", "offload_param", "cpu_offload", "fsdp_cpu_offload"),
    "parallel.tensor": ("tensor_parallel_size", "tensor_parallel_degree", "tp", "tp_size"),
    "parallel.sequence": (
        "sequence_parallel_degree", "sequence_parallel_size", "context_parallel_size", "sp_size",
    ),
    "parallel.ranks": ("num_processes", "nproc_per_node", "num_gpus", "devices"),
    "precision": ("bf16", "fp16", "mixed_precision", "torch_dtype", "dtype", "pure_bf16", "tf32"),
    "reference": ("ref_model", "precompute_ref_log_probs", "precompute_reference_logprobs"),
    "lora.rank": ("r", "lora_r", "lora_rank"),
    "lora.alpha": ("lora_alpha",),
    "lora.dropout": ("lora_dropout",),
    "lora.target_modules": (
        "lora_target", "lora_target_modules", "lora_target_linear", "lora_attn_modules", "target",
    ),
    "lora": ("adapter", "finetuning_type", "use_peft", "peft", "peft_config", "train_type"),
    "rollout.group": ("num_generations", "group_size", "num_return_sequences", "rollout_n"),
    "rollout.max_tokens": ("max_completion_length", "max_new_tokens", "response_length"),
    "rollout.engine": ("use_vllm", "vllm_mode"),
    "rollout.rounds": ("num_iterations", "ppo_epochs"),
    "rewards": ("reward_funcs", "reward_functions", "reward_model", "reward_weights", "reward"),
    "optimizer.name": ("optim", "optimizer_type", "optimizer_name"),
    "optimizer.lr": ("learning_rate", "max_lr", "peak_lr", "base_lr"),
    "optimizer.betas": ("adam_beta1", "adam_beta2", "beta1", "beta2"),
    "optimizer.eps": ("adam_epsilon", "epsilon"),
    "optimizer.grad_clip": (
        "max_grad_norm", "gradient_clipping", "clip_grad", "clip_grad_norm", "gradient_clip_val",
    ),
    "schedule.name": ("lr_scheduler", "lr_scheduler_type", "scheduler", "lr_decay_style"),
    "schedule.warmup": (
        "warmup_steps", "warmup_ratio", "num_warmup_steps", "warmup_iters", "lr_warmup_steps",
    ),
    "duration.epochs": ("num_epochs", "num_train_epochs", "max_epochs"),
    "duration.steps": (
        "max_steps", "num_steps", "train_steps", "total_steps", "max_iters", "train_iters",
        "max_steps_per_epoch",
    ),
    "duration.tokens": ("max_tokens", "num_tokens", "train_tokens"),
    "checkpoint.every": ("save_steps", "save_interval", "save_freq", "saves_per_epoch"),
    "checkpoint.keep": ("save_total_limit", "max_checkpoints_to_keep"),
    "evaluation.every": (
        "eval_steps", "eval_interval", "evals_per_epoch", "eval_strategy", "evaluation_strategy",
        "run_val_every_n_steps",
    ),
    "log.every": ("logging_steps", "log_every", "log_interval", "log_every_n_steps"),
    "log.report_to": ("metric_logger", "logger", "loggers", "wandb_project", "use_wandb"),
    "training_args.run_name": ("run_name", "wandb_run_name", "wandb_name"),
    "deepspeed": ("deepspeed_config", "deepspeed_config_file", "ds_config"),
    "-o DIR": ("output_dir", "out_dir", "save_dir"),
    "--resume": ("resume_from_checkpoint", "auto_resume_from_checkpoints"),
    "--num-nodes": ("num_machines", "num_nodes", "nnodes"),
}  # fmt: skip
_SYNONYMS = {word: key for key, words in _WORDS.items() for word in words}
_REMARKS = {
    "gradient_accumulation_steps": "it follows from micro size and ranks",
    "per_device_train_batch_size": "`batch.global_size` is for all ranks",
    "micro_batch_size": "`batch.global_size` is for all ranks",
}
# Keys by which a file of another tool is known; two of them are enough.
_MARKS: dict[str, frozenset[str]] = {
    "torchtune": frozenset({
        "_component_", "checkpointer", "metric_logger", "max_steps_per_epoch",
        "enable_activation_checkpointing", "loss", "lr_scheduler", "dataset", "profiler", "device",
        "log_every_n_steps", "batch_size", "epochs", "log_peak_memory_stats", "dtype", "output_dir",
    }),
    "Axolotl": frozenset({
        "base_model", "datasets", "sequence_len", "sample_packing", "val_set_size", "adapter",
        "lora_target_linear", "lora_r", "micro_batch_size", "num_epochs", "dataset_prepared_path",
        "load_in_8bit", "load_in_4bit", "special_tokens", "pad_to_sequence_len", "evals_per_epoch",
        "saves_per_epoch", "model_type", "tokenizer_type", "flash_attention", "chat_template",
        "wandb_project", "lr_scheduler", "learning_rate", "gradient_accumulation_steps", "rl",
    }),
    "LLaMA-Factory": frozenset({
        "model_name_or_path", "stage", "do_train", "finetuning_type", "lora_target", "lora_rank",
        "template", "cutoff_len", "dataset", "dataset_dir", "overwrite_cache", "plot_loss",
        "overwrite_output_dir", "preprocessing_num_workers", "pref_loss", "pref_beta", "val_size",
        "per_device_train_batch_size", "num_train_epochs", "image_max_pixels", "max_samples",
        "learning_rate", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_ratio",
    }),
    "TRL or transformers": frozenset({
        "model_name_or_path", "dataset_name", "per_device_train_batch_size", "learning_rate",
        "gradient_accumulation_steps", "num_train_epochs", "use_peft", "lora_r", "max_seq_length",
        "attn_implementation", "torch_dtype", "dataset_train_split", "dataset_test_split",
        "lora_target_modules", "lr_scheduler_type", "warmup_ratio", "logging_steps", "save_steps",
        "eval_strategy", "push_to_hub", "hub_model_id", "output_dir", "optim", "max_length",
    }),
    "accelerate": frozenset({
        "compute_environment", "distributed_type", "deepspeed_config", "fsdp_config",
        "machine_rank",
        "main_training_function", "mixed_precision", "num_machines", "num_processes", "use_cpu",
        "rdzv_backend", "same_network", "main_process_port", "main_process_ip", "downcast_bf16",
    }),
    "DeepSpeed": frozenset({
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
        "gradient_clipping", "zero_optimization", "scheduler", "fp16", "bf16", "steps_per_print",
        "wall_clock_breakdown", "zero_allow_untested_optimizer", "communication_data_type",
    }),
}  # fmt: skip
# What one gives who writes a section as a single value: `model: gpt2`.
_MAIN_KEYS = {
    "model": "name", "data": "train", "batch": "global_size", "parallel": "zero_stage",
    "optimizer": "name", "schedule": "name", "duration": "steps", "checkpoint": "every",
    "evaluation": "every", "log": "every", "lora": "rank", "watchdog": "timeout",
}  # fmt: skip


def hint_for(key: str, known: Sequence[str]) -> str:
    """The hint for a key that a recipe doesn't have: a near one of its section, or a synonym."""
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    word = name.lower().replace("-", "_")
    if word in _SYNONYMS and _SYNONYMS[word] != parent:
        remark = f"; {_REMARKS[word]}" if word in _REMARKS else ""
        return f"here it is called `{_SYNONYMS[word]}`{remark}"
    if key in known or "." in name:
        return ""
    same = [k for k in known if k.rpartition(".")[2] == word]
    if same:
        return f"it belongs to `{same[0].rpartition('.')[0]}`: `{same[0]}`"
    if near := did_you_mean(name, siblings):
        return near.replace(near.split("`")[1], siblings[near.split("`")[1]])
    if near := did_you_mean(word, _SYNONYMS, likeness=0.85):
        return f"did you mean `{_SYNONYMS[near.split('`')[1]]}`?"
    return f"known here: {', '.join(siblings)}" if siblings else ""


def hint_for_value(key: str, value: object) -> str:
    """Return the hint for a section that was given as one value."""
    if key not in _MAIN_KEYS or isinstance(value, Mapping | list) or value is None:
        return ""
    return f"such as `{key}: {{{_MAIN_KEYS[key]}: {shortened(str(value), 40)}}}`"


def other_tool(tree: Mapping[str, object], unknown: Collection[str]) -> str:
    """Which tool's file this looks like, as a sentence; empty if it looks like none's.

    Args:
        tree: the settings.
        unknown: the dotted keys that a recipe doesn't have.
    """
    names = {key.rpartition(".")[2] for key in unknown} | (set(tree) & {"stage"})
    hits = {tool: len(marks & names) for tool, marks in _MARKS.items()}
    tool = max(hits, key=lambda name: hits[name])
    if hits[tool] < 2 and "_component_" not in names:
        return ""
    return (
        f"this looks like a file of {tool}; `dslm recipes new FILE` writes a recipe to start from, "
        "and docs/recipe.md lists the keys"
    )
