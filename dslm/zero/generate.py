"""From recipe, cluster and strategy to one DeepSpeed config, with the reason of every value.

A preset of `ds_configs/` is the start; what the recipe and the plan say is set on it, the recipe's
own `deepspeed:` section comes last. The result holds no "auto". Pure: it reads the preset and
nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dslm.cluster.hosts import Cluster
from dslm.errors import RecipeError, Where
from dslm.plan.buckets import bucket_elements
from dslm.plan.strategy import Strategy
from dslm.presets import preset_path
from dslm.profile.value import Profile
from dslm.recipe.duration import total_steps, warmup_steps
from dslm.recipe.features import is_second, quantizes_gradients, quantizes_weights
from dslm.recipe.preferences import WHOLE_HEAD
from dslm.recipe.schema import Recipe
from dslm.zero.features import settings_of

_ZERO = "zero_optimization"
# Why the presets hold what they hold, by key or by the section above it.
_PRESET_REASONS = {
    f"{_ZERO}.overlap_comm": "gradients are reduced while the backward pass goes on",
    f"{_ZERO}.contiguous_gradients": "gradients in one buffer: memory doesn't fragment",
    f"{_ZERO}.reduce_bucket_size": "elements reduced in one message",
    f"{_ZERO}.allgather_bucket_size": "elements gathered in one message",
    f"{_ZERO}.stage3_prefetch_bucket_size": "elements gathered ahead of their use",
    f"{_ZERO}.stage3_param_persistence_threshold": "smaller parameters are never partitioned",
    f"{_ZERO}.stage3_max_live_parameters": "DeepSpeed's default: gathered elements at most",
    f"{_ZERO}.stage3_max_reuse_distance": "DeepSpeed's default: sooner needed again, kept",
    f"{_ZERO}.stage3_gather_16bit_weights_on_model_save": "so that a saved model is a whole one",
    f"{_ZERO}.offload_optimizer": "the optimizer's state and its update leave the device",
    f"{_ZERO}.offload_param": "parameters come to the device when they are needed",
    f"{_ZERO}.zero_hpz_partition_size": "ZeRO++: backward gathers inside a host",
    f"{_ZERO}.zero_quantized": "ZeRO++: messages of fewer bits",
    "aio": "DeepSpeed's default for asynchronous reads and writes of the disk",
    "tensor_parallel": "the strategy: layers shared by ranks",
    "sequence_parallel_size": "the strategy: sequences shared by ranks",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """The source of a value (preset, recipe, computed, override) and its reason, in a line."""

    source: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedConfig:
    """A complete DeepSpeed config, and the reason of each of its values by dotted key."""

    preset: str
    values: dict[str, Any]
    reasons: dict[str, Reason]


@dataclass(slots=True)
class _Draft:
    """A config in the making: every value is set together with its reason."""

    values: dict[str, Any]
    reasons: dict[str, Reason] = field(default_factory=dict)

    def set(self, key: str, value: object, source: str, text: str) -> None:
        *parents, last = key.split(".")
        place = self.values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        for below in [k for k in self.reasons if k == key or k.startswith(f"{key}.")]:
            del self.reasons[below]
        for leaf, _ in leaves(value, key):
            self.reasons[leaf] = Reason(source, text)

    def drop(self, key: str) -> None:
        self.values.pop(key, None)
        for below in [k for k in self.reasons if k == key or k.startswith(f"{key}.")]:
            del self.reasons[below]


def leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value of a nested mapping with its dotted key."""
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from leaves(below, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def preset_name(recipe: Recipe, strategy: Strategy) -> str:
    """Return the preset of `ds_configs/` that a strategy starts from.

    Raises:
        RecipeError: no preset has this combination.
    """
    stage, offload = strategy.zero_stage, strategy.offload
    if offload == "none" and strategy.sequence_parallel > 1:
        return "sequence-parallel"
    if offload == "none" and strategy.tensor_parallel > 1:
        return "autotp"
    if all(each(recipe) for each in (is_second, quantizes_weights, quantizes_gradients)):
        return "zeropp"
    if offload == "none":
        return f"zero{stage}"
    if offload == "optimizer":
        return f"zero{stage}-offload-optimizer"
    if stage == 3:
        return f"zero3-offload-{offload}"
    raise RecipeError(
        f"`parallel.offload: {offload}` needs ZeRO stage 3, not {stage}",
        where=Where(key="parallel.offload"),
    )


def generate(
    recipe: Recipe, cluster: Cluster, strategy: Strategy, profile: Profile | None
) -> ResolvedConfig:
    """Return the DeepSpeed config of a run.

    Args:
        recipe: as loaded; its `auto`s are what `strategy` resolves.
        cluster: hosts and device.
        strategy: what the planner chose.
        profile: the model's; None leaves DeepSpeed's own bucket sizes.

    Raises:
        RecipeError: no preset has this combination.
    """
    name = preset_name(recipe, strategy)
    path = preset_path("ds_configs", name, ".json")
    if path is None:
        raise RecipeError(f"the DeepSpeed preset `{name}` is missing from this installation")
    draft = _Draft(json.loads(path.read_text(encoding="utf-8")))
    for key, _ in leaves(draft.values):
        why = next((why for start, why in _PRESET_REASONS.items() if key.startswith(start)), "")
        draft.reasons[key] = Reason("preset", why or f"ds_configs/{name}.json")
    _batch(draft, recipe, strategy)
    _precision(draft, recipe)
    _optimizer(draft, recipe, cluster, strategy)
    _scheduler(draft, recipe)
    _model_parallelism(draft, recipe, strategy)
    _partitioning(draft, recipe, cluster, strategy, profile)
    for setting in settings_of(recipe, cluster, strategy, profile):
        draft.set(setting.key, setting.value, setting.source, setting.text)
    _logging(draft, recipe)
    for key, value in leaves(recipe.deepspeed) if recipe.deepspeed else ():
        draft.set(key, value, "override", "the recipe's `deepspeed` section, merged last")
    return ResolvedConfig(preset=name, values=draft.values, reasons=draft.reasons)


def explain(config: ResolvedConfig) -> list[tuple[str, object, str, str]]:
    """Rows of key, value, source, reason, in the config's order."""
    return [
        (key, value, config.reasons[key].source, config.reasons[key].text)
        for key, value in leaves(config.values)
    ]


def _batch(draft: _Draft, recipe: Recipe, strategy: Strategy) -> None:
    size = strategy.global_batch_size
    draft.set("train_batch_size", size, "recipe", "batch.global_size: the same on any cluster")
    if strategy.tensor_parallel > 1:
        # DeepSpeed checks it against every rank's micro batches, those of one tensor group as well
        draft.drop("train_batch_size")
    given = recipe.batch.micro_size != "auto"
    draft.set(
        "train_micro_batch_size_per_gpu",
        strategy.micro_batch_size,
        "recipe" if given else "computed",
        "batch.micro_size" if given else "the planner: the fastest that fits",
    )
    draft.set(
        "gradient_accumulation_steps",
        strategy.gradient_accumulation_steps,
        "computed",
        f"{size} / ({strategy.micro_batch_size} × {strategy.data_parallel_size} data-parallel)",
    )


def _precision(draft: _Draft, recipe: Recipe) -> None:
    text = f"precision: {recipe.precision}"
    if recipe.precision != "bf16" or recipe.autocast:
        draft.drop("bf16")
    if recipe.autocast:
        return
    if recipe.precision == "bf16":
        draft.set("bf16.enabled", True, "recipe", text)
    elif recipe.precision == "fp16":
        # dynamic loss scaling with DeepSpeed's own defaults
        scaling = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
        draft.set("fp16", scaling, "recipe", text)


def _optimizer(draft: _Draft, recipe: Recipe, cluster: Cluster, strategy: Strategy) -> None:
    optimizer = recipe.optimizer
    draft.set("gradient_clipping", optimizer.grad_clip, "recipe", "optimizer.grad_clip")
    draft.drop("optimizer")
    common = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    adam = {**common, "betas": list(optimizer.betas), "eps": optimizer.eps}
    sections: dict[str, dict[str, Any]] = {
        "adamw": {"type": "AdamW", "params": adam},
        "adam": {"type": "Adam", "params": {**adam, "adam_w_mode": False}},
        "lion": {"type": "Lion", "params": {**common, "betas": list(optimizer.betas)}},
        "muon": {"type": "Muon", "params": common},
        "sgd": {"type": "SGD", "params": common},
    }
    grouped = recipe.lora is not None and recipe.lora.b_lr_ratio != 1
    section = None if grouped else sections.get(optimizer.name)
    if section is not None:
        draft.set("optimizer.type", section["type"], "recipe", f"optimizer.name: {optimizer.name}")
        for key, value in section["params"].items():
            draft.set(f"optimizer.params.{key}", value, "recipe", f"optimizer.{key}")
    is_adam = optimizer.name in ("adamw", "adam")
    if (
        section is not None
        and is_adam
        and cluster.device.kind == "cpu"
        and strategy.offload == "none"
    ):
        draft.set(
            "optimizer.params.torch_adam", True, "computed", "on a CPU torch's own needs no build"
        )
        draft.set("optimizer.params.fused", True, "computed", "one pass over the state")
    if optimizer.name == "muon" and strategy.zero_stage == 3:
        why = "DeepSpeed's Muon takes whole gradients at stage 3"
        draft.set(f"{_ZERO}.reduce_scatter", False, "computed", why)
    if grouped:
        why = "adapters have two learning rates (lora.b_lr_ratio), and DeepSpeed's own has one"
        draft.set("zero_allow_untested_optimizer", True, "computed", why)
    elif section is None or optimizer.name == "sgd":
        why = f"DeepSpeed has no {optimizer.name} of its own; torch's or transformers' is used"
        draft.set("zero_allow_untested_optimizer", True, "computed", why)


def _scheduler(draft: _Draft, recipe: Recipe) -> None:
    """DeepSpeed's scheduler where it has the curve; else the worker leaves it to the Trainer."""
    steps, name = total_steps(recipe), recipe.schedule.name
    if "optimizer" not in draft.values or steps is None:
        return
    warmup = warmup_steps(recipe, steps)
    rate = recipe.optimizer.lr
    ramp = {"warmup_min_lr": 0.0, "warmup_max_lr": rate, "warmup_num_steps": warmup}
    curves: dict[str, dict[str, Any]] = {
        "linear": {
            "type": "WarmupDecayLR",
            "params": {**ramp, "warmup_type": "linear", "total_num_steps": steps},
        },
        "cosine": {
            "type": "WarmupCosineLR",
            "params": {
                "warmup_num_steps": warmup,
                "warmup_min_ratio": 0.0,
                "warmup_type": "linear",
                "cos_min_ratio": 0.0,
                "total_num_steps": steps,
            },
        },
        "constant": {"type": "WarmupLR", "params": {**ramp, "warmup_type": "linear"}},
    }
    if name not in curves or warmup <= 1:  # DeepSpeed divides by the logarithm of the warm-up
        return
    draft.set("scheduler", curves[name], "recipe", f"schedule.name: {name}")
    reasons = {
        "warmup_num_steps": ("computed", f"schedule.warmup: {recipe.schedule.warmup:g}"),
        "total_num_steps": ("recipe" if recipe.duration.steps else "computed", "duration"),
        "warmup_max_lr": ("recipe", "optimizer.lr"),
    }
    for key, (source, text) in reasons.items():
        if key in curves[name]["params"]:
            draft.set(f"scheduler.params.{key}", curves[name]["params"][key], source, text)


def _partitioning(
    draft: _Draft, recipe: Recipe, cluster: Cluster, strategy: Strategy, profile: Profile | None
) -> None:
    given = recipe.parallel.zero_stage != "auto"
    draft.set(
        f"{_ZERO}.stage",
        strategy.zero_stage,
        "recipe" if given else "computed",
        "parallel.zero_stage" if given else "the planner: the fastest that fits",
    )
    _buckets(draft, strategy, profile)
    if cluster.device.kind == "cpu":
        _of_a_cpu(draft)
    if recipe.parallel.nvme_path and strategy.offload == "nvme":
        for key in ("offload_optimizer", "offload_param"):
            path = recipe.parallel.nvme_path
            draft.set(f"{_ZERO}.{key}.nvme_path", path, "recipe", "parallel.nvme_path")


def _buckets(draft: _Draft, strategy: Strategy, profile: Profile | None) -> None:
    """Sizes by transformers' rule for its Trainer.

    Source: HfTrainerDeepSpeedConfig.trainer_config_finalize.
    """
    bucket = bucket_elements(profile)
    square = (
        "hidden size², at least 25 MiB in fp32"
        if profile
        else "DeepSpeed's default: no sizes known"
    )
    if strategy.zero_stage in (1, 2):
        for key in ("reduce_bucket_size", "allgather_bucket_size"):
            draft.set(f"{_ZERO}.{key}", bucket, "computed", square)
    hidden = profile.hidden_size if profile else None
    if strategy.zero_stage == 3 and hidden is not None:
        sizes = {
            "reduce_bucket_size": (bucket, square),
            "stage3_prefetch_bucket_size": (int(0.9 * bucket), "0.9 × the bucket"),
            "stage3_param_persistence_threshold": (10 * hidden, "10 × hidden size"),
        }
        for key, (value, why) in sizes.items():
            draft.set(f"{_ZERO}.{key}", value, "computed", why)


def _of_a_cpu(draft: _Draft) -> None:
    zero = draft.values[_ZERO]
    if "expert_parallel" in draft.values:
        why = "one product for all experts is an accelerator's"
        draft.set("expert_parallel.use_grouped_mm", False, "computed", why)
    if "overlap_comm" in zero:
        draft.set(f"{_ZERO}.overlap_comm", False, "computed", "a CPU has no streams to overlap")
    for key in ("offload_optimizer", "offload_param"):
        if key in zero:
            why = "no accelerator copies from it"
            draft.set(f"{_ZERO}.{key}.pin_memory", False, "computed", why)


def _model_parallelism(draft: _Draft, recipe: Recipe, strategy: Strategy) -> None:
    if strategy.tensor_parallel > 1:
        size = strategy.tensor_parallel
        draft.set("tensor_parallel.autotp_size", size, "recipe", "parallel.tensor")
        if recipe.task in WHOLE_HEAD:
            draft.set(
                "tensor_parallel.vocab_parallel_lm_head",
                False,
                "computed",
                "the loss of the task multiplies with the whole head",
            )
    if strategy.sequence_parallel > 1:
        draft.set(
            "sequence_parallel_size", strategy.sequence_parallel, "recipe", "parallel.sequence"
        )
    if strategy.expert_parallel > 1:
        draft.set("expert_parallel.enabled", True, "recipe", "parallel.expert")
        draft.set(
            "expert_parallel.autoep_size", strategy.expert_parallel, "recipe", "parallel.expert"
        )
    if strategy.activation_checkpointing:
        draft.set(
            "activation_checkpointing",
            {"partition_activations": strategy.tensor_parallel > 1, "cpu_checkpointing": False},
            "computed" if recipe.model.activation_checkpointing == "auto" else "recipe",
            "activations are recomputed; transformers' layers do it themselves",
        )


def _logging(draft: _Draft, recipe: Recipe) -> None:
    draft.set("steps_per_print", recipe.log.every, "recipe", "log.every; goes to the ranks' logs")
    draft.set(
        "wall_clock_breakdown", False, "computed", "dslm reads the timers itself: no line a step"
    )
