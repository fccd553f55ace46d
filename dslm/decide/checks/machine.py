"""Checks on the device and on this machine: what is installed, what a CPU or a disk can do."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
from collections.abc import Iterator, Mapping
from json import dumps
from pathlib import Path

from dslm.decide.checks.base import (
    ALL,
    ONLY_TRAIN,
    STARTING,
    TRAINING,
    Case,
    Check,
    Problem,
    Verb,
)
from dslm.decide.checks.model import HEADS
from dslm.recipe.extras import missing_extras
from dslm.zero.config import value_at

# Optimizers that DeepSpeed has for accelerators and for offloading only.
_NOT_ON_A_CPU = ("lion",)
# Optimizers whose state DeepSpeed hands to its own Adam, which can't take it.
_NOT_OFFLOADED = ("adafactor",)
_OF_ZEROPP = tuple(
    f"zero_optimization.{name}"
    for name in (
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
        "zero_hpz_partition_size",
    )
)
_HALF = ("bf16", "fp16")
# tasks that a verification has no reference for
_UNVERIFIED = {"grpo": "what it learns from is drawn while it learns"}
# settings with which a trainer's loss is not the one that a verification computes, and their usual
# values
_OTHER_LOSSES: Mapping[str, object] = {
    "neftune_noise_alpha": None,
    "loss_type": None,
    "loss_weights": None,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "sync_ref_model": False,
    "router_aux_loss_coef": None,
}
_COMPILER_SETTINGS = ("CPATH", "CPLUS_INCLUDE_PATH", "CFLAGS", "CONDA_PREFIX")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _extras(case: Case) -> Iterator[Problem]:
    for extra in missing_extras(case.recipe):
        yield Problem(
            key=extra.key,
            message=f"this recipe needs {extra.name}, which is not installed",
            hint=f"pip install 'dslm[{extra.extra}]'",
        )


def _attention(case: Case) -> Iterator[Problem]:
    wanted, key = case.recipe.model.attention, "model.attention"
    if wanted in ("auto", "eager"):
        return
    if case.kind is not None and case.kind.heads and wanted not in case.kind.code:
        yield Problem(
            key=key,
            message=f"transformers has no {wanted} for a model of type `{case.kind.name}`",
            hint=f"`--set {key}=auto`",
        )
    if wanted != "flash_attention_2":
        return
    if case.on_cpu:
        text = "flash attention needs CUDA, but this is a CPU"
        yield Problem(key=key, message=text, hint=f"`--set {key}=auto`")
    elif case.here and not _installed("flash_attn"):
        hint = f"pip install flash-attn, or `--set {key}=auto`"
        yield Problem(key=key, message="flash-attn is not installed", hint=hint)
    if case.recipe.precision not in _HALF:
        yield Problem(
            key=key,
            message=f"flash attention computes in bf16 and fp16, not in {case.recipe.precision}",
            hint=f"`--set precision=bf16`, or `--set {key}=sdpa`",
        )
    if HEADS.get(case.recipe.task) == HEADS["mlm"]:
        yield Problem(
            key=key,
            message="flash attention can't keep the documents of a sample apart in a masked model",
            hint=f"`--set {key}=sdpa`",
        )


def _liger(case: Case) -> Iterator[Problem]:
    if case.recipe.model.liger is not True:
        return
    if case.on_cpu:
        text = "Liger kernels need an accelerator, but this is a CPU"
        yield Problem(key="model.liger", message=text, hint="`--set model.liger=auto`")
    elif case.here and not _installed("liger_kernel"):
        hint = "pip install liger-kernel, or `--set model.liger=auto`"
        yield Problem(key="model.liger", message="Liger is not installed", hint=hint)


def _zeropp(case: Case) -> Iterator[Problem]:
    if not case.on_cpu:
        return
    for key in _OF_ZEROPP:
        value = value_at(case.recipe.deepspeed, key)
        if value is True or (isinstance(value, int) and value > 1):
            text = f"`{key}` is of ZeRO++, whose kernels need an accelerator, but this is a CPU"
            yield Problem(key=f"deepspeed.{key}", message=text, hint="leave it out")


def _optimizer(case: Case) -> Iterator[Problem]:
    name = case.recipe.optimizer.name
    offload = case.strategy.offload if case.strategy else case.recipe.parallel.offload
    if case.on_cpu and name in _NOT_ON_A_CPU and offload == "none":
        yield Problem(
            key="optimizer.name",
            message=f"DeepSpeed has no {name} for a CPU",
            hint="`--set optimizer.name=adamw`, or `--set parallel.offload=optimizer`",
        )
    if name in _NOT_OFFLOADED and offload not in ("none", "auto"):
        yield Problem(
            key="optimizer.name",
            message=f"DeepSpeed can't offload the state of {name}",
            hint="`--set optimizer.name=adamw`, or `--set parallel.offload=none`",
        )


def _nvme(case: Case) -> Iterator[Problem]:
    parallel = case.recipe.parallel
    if parallel.offload != "nvme" or parallel.nvme_path is None:
        return
    folder = Path(parallel.nvme_path).expanduser()
    if not folder.is_dir():
        text = f"there is no folder `{parallel.nvme_path}`"
        yield Problem(key="parallel.nvme_path", message=text, hint="on a local NVMe disk")
    elif not os.access(folder, os.W_OK):
        text = f"the folder `{parallel.nvme_path}` can't be written"
        yield Problem(key="parallel.nvme_path", message=text, hint="its owner can change that")
    if ctypes.util.find_library("aio") is None:
        yield Problem(
            key="parallel.offload",
            message="libaio is not installed: DeepSpeed reads and writes the disk with it",
            hint="apt install libaio-dev",
        )
    elif not _header("libaio.h"):
        yield Problem(
            key="parallel.offload",
            message="the headers of libaio, with which DeepSpeed builds its reader, are missing",
            hint="apt install libaio-dev",
        )


def _header(name: str) -> bool:
    """Return whether a C header is in a folder that compilers search."""
    settings = " ".join(os.environ.get(key, "") for key in _COMPILER_SETTINGS)
    given = settings.replace("-I", " ").replace(":", " ").split()
    folders = ["/usr/include", "/usr/local/include", *given]
    return any((Path(f) / n).is_file() for f in folders for n in (name, f"include/{name}"))


def _of_a_script(case: Case) -> Iterator[Problem]:
    if case.recipe.task == "script":
        yield Problem(
            key="task",
            message="the task `script` is your own script's",
            hint="`dslm launch SCRIPT --recipe RECIPE` runs it with this recipe's config",
        )


def _without_reference(case: Case) -> Iterator[Problem]:
    recipe = case.recipe
    if recipe.task in _UNVERIFIED:
        yield Problem(
            key="task",
            message=f"`dslm verify` has no reference for the task `{recipe.task}`: "
            f"{_UNVERIFIED[recipe.task]}",
            hint="another task verifies the layout: `--set task=sft` with its data",
        )
    if recipe.quantize == "int8":
        yield Problem(
            key="quantize",
            message="`dslm verify` has no reference for `int8`, which rounds what goes in, too",
            hint="`--set quantize=nf4` or `--set quantize=null` verifies the same layout",
        )
    for name, plain in _OTHER_LOSSES.items():
        value = recipe.training_args.get(name, plain)
        if value not in (plain, [plain]):
            yield Problem(
                key=f"training_args.{name}",
                message=f"`dslm verify` has no reference for a loss with `{name}: {dumps(value)}`",
                hint=f"`--set training_args.{name}={dumps(plain)}` verifies the same layout "
                "without it",
            )


def _adapters(case: Case) -> Iterator[Problem]:
    if case.recipe.lora is not None and case.recipe.model.init == "scratch":
        yield Problem(
            key="lora",
            message="adapters need a trained model, and this one starts from scratch",
            hint="name one: `--set model.init=pretrained --set model.name=FOLDER`, or leave "
            "`lora` out",
        )


CHECKS = (
    Check(name="a task that dslm trains", looks_at="task", judge=_of_a_script, verbs=ONLY_TRAIN),
    Check(
        name="a task that a verification has a reference for",
        looks_at="task",
        judge=_without_reference,
        verbs=frozenset({Verb.VERIFY}),
    ),
    Check(
        name="adapters on a trained model",
        looks_at="lora, model.init",
        judge=_adapters,
        verbs=ONLY_TRAIN,
    ),
    Check(
        name="packages that the recipe needs",
        looks_at="task, lora, data.train",
        judge=_extras,
        verbs=TRAINING,
        of_machine=True,
    ),
    Check(
        name="attention that the model and the device have",
        looks_at="model.attention, precision, task",
        judge=_attention,
        verbs=TRAINING,
    ),
    Check(
        name="Liger where it runs",
        looks_at="model.liger",
        judge=_liger,
        verbs=TRAINING,
    ),
    Check(
        name="ZeRO++ where it runs",
        looks_at="deepspeed.zero_optimization",
        judge=_zeropp,
        verbs=ALL,
    ),
    Check(
        name="an optimizer for the device and its offload",
        looks_at="optimizer.name, parallel.offload",
        judge=_optimizer,
        verbs=ALL,
        planned=True,
    ),
    Check(
        name="a disk to offload to",
        looks_at="parallel.nvme_path, libaio",
        judge=_nvme,
        verbs=STARTING,
        of_machine=True,
    ),
)
