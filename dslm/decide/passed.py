"""Arguments that a user's Trainer script gets from a recipe, so that they agree with the config.

transformers' Trainer refuses a DeepSpeed config whose values differ from its own arguments, and the
defaults of an untouched script are not the recipe's. A script that takes the Trainer's arguments is
given the recipe's as arguments; what its user says on the command line goes before, and is written
into the config. One that makes its arguments itself gets a config that leaves those values to it.
Source of the values that must agree: HfTrainerDeepSpeedConfig in transformers'
integrations/deepspeed.py. Pure.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dslm.decide.job import Job
from dslm.errors import OptionError, Where
from dslm.recipe.duration import total_steps, warmup_steps
from dslm.units import number_of

_PARSERS = re.compile(r"\b(HfArgumentParser|TrlParser)\b")
_TRAINER = re.compile(r"\bTrainingArguments\b")
_AUTO = "auto"  # in the config of a script that makes its own arguments: the Trainer fills it
_SCHEDULES = {"constant": "constant_with_warmup"}
# Alternatives: a user who gives one of a group has decided about all of it.
_GROUPS = (("max_steps", "num_train_epochs"), ("bf16", "fp16"), ("warmup_steps", "warmup_ratio"))
_NO = ("false", "no", "0", "n", "f")
_PARAMS = {
    "learning_rate": "lr", "weight_decay": "weight_decay", "adam_epsilon": "eps",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """Arguments that a script is given beside its user's, and the config that goes with them."""

    arguments: tuple[str, ...]
    config: Mapping[str, Any]
    yours: tuple[str, ...] = ()  # the user's arguments that went before the recipe's


def pass_on(text: str, arguments: Sequence[str], job: Job) -> Passed:
    """Derive a script's arguments from a recipe.

    Args:
        text: the script's source.
        arguments: what its user passes it.
        job: the recipe, resolved for where it runs.

    Raises:
        OptionError: the user's batch sizes and the recipe's can't both hold.
    """
    config = job.config.values
    if _PARSERS.search(text):
        return _as_arguments(_given(arguments), job)
    if _TRAINER.search(text):
        return Passed(arguments=(), config=_left_open(config))
    return Passed(arguments=(), config=config)


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """The options of a command line by name, as transformers' parser reads them."""
    found: dict[str, str] = {}
    for place, word in enumerate(arguments):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        after = arguments[place + 1] if place + 1 < len(arguments) else "--"
        found[name.replace("-", "_")] = (
            value if equals else "true" if after.startswith("--") else after
        )
    return found


def _of_recipe(job: Job) -> dict[str, object]:
    """The Trainer's arguments as the recipe has them."""
    recipe, config = job.recipe, job.config.values
    optimizer, steps = recipe.optimizer, total_steps(recipe)
    found: dict[str, object] = {
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "max_grad_norm": optimizer.grad_clip,
        "lr_scheduler_type": _SCHEDULES.get(recipe.schedule.name, recipe.schedule.name),
        "per_device_train_batch_size": config["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "logging_steps": recipe.log.every,
        "seed": recipe.seed,
    }
    if steps is None:
        found["num_train_epochs"] = recipe.duration.epochs
    else:
        found["max_steps"] = steps
    # below 1 it is a share of all steps, for the Trainer too
    warmup = recipe.schedule.warmup
    found["warmup_steps"] = warmup_steps(recipe, steps) if steps is not None else warmup
    if recipe.precision in ("bf16", "fp16"):
        found[recipe.precision] = True
    if job.cluster.device.kind == "cpu":
        found["use_cpu"] = True
    if recipe.model.activation_checkpointing is True:
        found["gradient_checkpointing"] = True
    return found


def _as_arguments(given: Mapping[str, str], job: Job) -> Passed:
    ours, config = _of_recipe(job), job.config.values
    for group in _GROUPS:
        if any(name in given for name in group):
            for name in group:
                ours.pop(name, None)
    yours = tuple(name for name in ours if name in given)
    if yours and set(yours) & {"per_device_train_batch_size", "gradient_accumulation_steps"}:
        ours |= _batch(given, config)
    made = _agreeing(copy.deepcopy(dict(config)), {**ours, **given})
    passed = [
        word for name, value in ours.items() if name not in given for word in _words(name, value)
    ]
    return Passed(arguments=tuple(passed), config=made, yours=yours)


def _words(name: str, value: object) -> tuple[str, str]:
    return f"--{name}", str(value)


def _batch(given: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, int]:
    """Micro batch and accumulation, where the user says one or both.

    Raises:
        OptionError: one is no whole number, or the global batch can't be split so.
    """
    micro_name, steps_name = "per_device_train_batch_size", "gradient_accumulation_steps"
    total = int(config["train_batch_size"])
    micro, steps = (
        int(config["train_micro_batch_size_per_gpu"]), int(config["gradient_accumulation_steps"]),
    )  # fmt: skip
    ranks = total // (micro * steps)
    sizes = {name: _whole(name, given[name]) for name in (micro_name, steps_name) if name in given}
    if len(sizes) == 1:
        name, size = next(iter(sizes.items()))
        if total % (size * ranks):
            raise OptionError(
                f"the recipe's global batch of {total} can't be split by `--{name} {size}` over "
                f"{number_of(ranks, 'rank')}",
                where=Where(key=f"--{name}"),
                hint="give both sizes, or `--set batch.global_size=N`",
            )
        sizes[steps_name if name == micro_name else micro_name] = total // (size * ranks)
    return sizes


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise OptionError(
            f"`--{name}` must be a positive whole number, not `{text}`",
            where=Where(key=f"--{name}"),
        )
    return int(text)


def _agreeing(config: dict[str, Any], final: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values that the Trainer will have."""
    ranks = config["train_batch_size"] // (
        config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    )
    micro, steps = (
        int(final[name]) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"] = micro, steps
    config["train_batch_size"] = micro * steps * ranks
    config["gradient_clipping"] = float(final["max_grad_norm"])
    config.pop("scheduler", None)  # the Trainer's own: it alone knows how many steps there are
    params = config.get("optimizer", {}).get("params", {})
    for name, key in _PARAMS.items():
        if key in params:
            params[key] = float(final[name])
    if "betas" in params:
        params["betas"] = [float(final["adam_beta1"]), float(final["adam_beta2"])]
    for name in ("bf16", "fp16"):
        wanted = str(final.get(name, "false")).lower() not in _NO
        if wanted:
            config[name] = {**config.get(name, {}), "enabled": True}
        else:
            config.pop(name, None)
    return config


def _left_open(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what the script's own arguments decide."""
    made = copy.deepcopy(dict(config))
    made.pop("scheduler", None)
    for key in (
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
        "gradient_clipping",
    ):  # fmt: skip
        made[key] = _AUTO
    params = made.get("optimizer", {}).get("params", {})
    for key in ("lr", "betas", "eps", "weight_decay"):
        if key in params:
            params[key] = _AUTO
    for key in ("bf16", "fp16"):
        made[key] = {**made.get(key, {}), "enabled": _AUTO}
    return made
