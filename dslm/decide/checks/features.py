"""Checks on features of DeepSpeed: the stage, the device, the version and what is beside them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from dslm.cluster.wrong_versions import installed_release, release_numbers
from dslm.decide.checks.base import Case, Check, Problem, apart
from dslm.recipe.features import Apart, Feature, features_of, given_by, is_second, quantizes_weights
from dslm.recipe.long_context import clashes_of
from dslm.units import listed

_ADAM = ("adamw", "adam")


def _stage(case: Case) -> int | None:
    stage = case.strategy.zero_stage if case.strategy else case.recipe.parallel.zero_stage
    return stage if isinstance(stage, int) else None


def _offload(case: Case) -> str | None:
    offload = case.strategy.offload if case.strategy else case.recipe.parallel.offload
    return None if offload == "auto" else offload


def _features(case: Case) -> Iterator[Problem]:
    """Find the features that can't be used here, each with all its reasons."""
    for feature in features_of(case.recipe):
        key = given_by(feature, case.recipe)
        off = _switched_off(key)
        for judge in (_device, _place, _task, _version):
            for message, hint in judge(case, feature):
                yield Problem(key=key, message=message, hint=hint or off)


def _switched_off(key: str) -> str:
    value = {"parallel.offload_ratio": "1", "parallel.overlap": "auto"}.get(key, "false")
    return f"`--set {key}={value}`"


_Said = Iterator[tuple[str, str]]


def _device(case: Case, feature: Feature) -> _Said:
    if feature.accelerator and case.on_cpu:
        yield f"{feature.what} needs an accelerator, but this is a CPU", ""
    elif feature.cuda and case.cluster.device.kind != "cuda":
        yield f"{feature.what} needs a device of NVIDIA's, not {case.cluster.device.name}", ""


def _place(case: Case, feature: Feature) -> _Said:
    stage, offload = _stage(case), _offload(case)
    if stage is not None and stage not in feature.stages:
        *first, last = map(str, feature.stages)
        needed = f"{', '.join(first)} or {last}" if first else last
        yield (
            f"{feature.what} needs ZeRO stage {needed}, not {stage}",
            f"`--set parallel.zero_stage={last}`",
        )
    if offload is not None and feature.offloads and offload not in feature.offloads:
        wanted = feature.offloads[0]
        yield (
            f"{feature.what} is of an offloaded optimizer, and `parallel.offload` is {offload}",
            f"`--set parallel.offload={wanted}`",
        )


def _task(case: Case, feature: Feature) -> _Said:
    if feature.tasks and case.recipe.task not in feature.tasks:
        tasks = listed(f"`{task}`" for task in feature.tasks)
        yield f"{feature.what} is for the tasks {tasks}, not `{case.recipe.task}`", ""


def _version(case: Case, feature: Feature) -> _Said:
    if not case.here:
        return
    if feature.home and not _has(feature.home):
        version = installed_release("deepspeed")
        yield (
            f"DeepSpeed {version} has no {feature.what} ({feature.home})",
            ("pip install --upgrade deepspeed"),
        )
    if feature.torch and not has_torch(feature.torch):
        yield f"{feature.what} needs torch {feature.torch}", "pip install --upgrade torch"


def _has(home: str) -> bool:
    """Return whether the installed DeepSpeed has a file; without importing it."""
    found = importlib.util.find_spec("deepspeed")
    if found is None or found.origin is None:
        return True  # nothing is installed here: hosts are asked for their own
    return (Path(found.origin).parent / home).is_file()


def has_torch(release: str) -> bool:
    """Return whether the installed torch is of a release, or a later one."""
    installed = installed_release("torch")  # None: hosts are asked for their own
    return installed is None or release_numbers(installed) >= release_numbers(release)


_APART = (
    Apart(
        "autocast", lambda r: r.autocast and r.precision == "fp32",
        "autocast computes in bf16 or fp16, and `precision` is fp32", "`--set precision=bf16`",
    ),
    Apart(
        "autocast", lambda r: r.autocast and quantizes_weights(r),
        "DeepSpeed has either autocast or quantized parameters", "`--set autocast=false`",
    ),
    Apart(
        "autocast", lambda r: r.autocast and r.lora is not None,
        "autocast keeps all parameters in fp32, and adapters are for saving that",
        "`--set autocast=false`",
    ),
    Apart(
        "model.deepcompile", lambda r: r.model.deepcompile and r.model.compile,
        "DeepCompile compiles the model itself", "`--set model.compile=false`",
    ),
    Apart(
        "model.chunked_loss", lambda r: r.model.chunked_loss and r.model.liger is True,
        "Liger's loss never has the logits that this one takes in chunks",
        "`--set model.chunked_loss=false`",
    ),
    Apart(
        "parallel.super_offload",
        lambda r: r.parallel.super_offload and r.parallel.offload_ratio < 1,
        "SuperOffload chooses by itself what stays on the device",
        "`--set parallel.offload_ratio=1`",
    ),
    Apart(
        "parallel.super_offload",
        lambda r: r.parallel.super_offload and r.optimizer.name not in _ADAM,
        "SuperOffload updates by Adam", "`--set optimizer.name=adamw`",
    ),
    Apart(
        "checkpoint.format",
        lambda r: r.parallel.zenflow and r.checkpoint.format == "portable",
        "ZenFlow's state is not kept for each parameter, so it has no portable form",
        "`--set checkpoint.format=native`",
    ),
    Apart(
        "parallel.zenflow", lambda r: r.parallel.zenflow and r.optimizer.name not in _ADAM,
        "ZenFlow updates by Adam", "`--set optimizer.name=adamw`",
    ),
)  # fmt: skip


def _tiles(case: Case) -> Iterator[Problem]:
    """Find what doesn't go with parts for long samples that the recipe itself asks for."""
    for clash in clashes_of(case.recipe):
        yield Problem(key=clash.key, message=clash.message, hint=clash.hint)


def _planned(case: Case) -> Iterator[Problem]:
    """Find what only the plan knows: stages and offloads that it chose, micro batches a step."""
    yield from _features(case)
    steps = case.strategy.gradient_accumulation_steps if case.strategy else 1
    if case.recipe.parallel.zenflow and steps > 1:
        yield Problem(
            key="parallel.zenflow",
            message=f"ZenFlow updates after every micro batch, and a step has {steps} of them",
            hint="a smaller `batch.global_size`, a larger `batch.micro_size` or more ranks",
        )
    if is_second(case.recipe) and case.cluster.slots_per_host == 1:
        yield Problem(
            key="parallel.zeropp" if case.recipe.parallel.zeropp else "parallel.hpz",
            message="a second partition is shared by the ranks of a host, and a host has one",
            hint="more ranks per host, or leave it out",
        )


CHECKS = (
    Check(
        name="features of DeepSpeed where they go",
        looks_at="parallel, model.deepcompile, model.chunked_loss, autocast",
        judge=_features,
    ),
    Check(
        name="features of DeepSpeed that go together",
        looks_at="parallel, model.deepcompile, model.chunked_loss, autocast",
        judge=apart(_APART),
    ),
    Check(
        name="savings for long samples that go with the rest",
        looks_at="model.tiled_mlp, model.tiled_loss, model.offload_activations",
        judge=_tiles,
    ),
    Check(
        name="features of DeepSpeed that go with the plan",
        looks_at="parallel, batch",
        judge=_planned,
        planned=True,
    ),
)
