"""Checks on adapters and on a model in few bits: what of the rest they go with."""

from __future__ import annotations

from collections.abc import Iterator

from dslm.decide.checks.base import TRAINING, Case, Check, Problem, apart
from dslm.files import expanded
from dslm.plan.runnable import CLASHES, begins_as_a_part, has_two_rates
from dslm.recipe.features import Apart

_APART = (
    Apart(
        "quantize", lambda r: r.quantize and r.lora is None,
        "a model in few bits can't be trained itself, only adapters beside it",
        "`--with lora`, or leave `quantize` out",
    ),
    Apart(
        "quantize", lambda r: r.quantize and r.model.init == "scratch",
        "only a trained model can be kept in few bits",
        "`--set model.init=pretrained --set model.name=FOLDER`",
    ),
    Apart(
        "parallel.tensor", lambda r: r.quantize and r.parallel.tensor not in (1, "auto"),
        "matrices in few bits can't be shared by tensor parallelism",
        "leave `parallel.tensor` out: `parallel.zero_stage: 3` partitions them",
    ),
    Apart(
        "parallel.expert", lambda r: r.quantize and r.parallel.expert != 1,
        "experts of a model in few bits can't be shared by ranks", "leave `parallel.expert` out",
    ),
    Apart(
        "parallel.zeropp", lambda r: r.quantize and r.parallel.zeropp,
        "ZeRO++ quantises what it sends, and these parameters are in few bits already",
        "leave one of the two out",
    ),
    Apart(
        "lora.init", lambda r: r.quantize and begins_as_a_part(r),
        "adapters that begin as a part of the model can't be taken out of one in few bits",
        "`--set lora.init=default`",
    ),
    Apart(
        "lora.b_lr_ratio",
        lambda r: has_two_rates(r) and r.optimizer.name not in ("adamw", "adam"),
        "LoRA+ is for adamw and adam", "`--set optimizer.name=adamw`",
    ),
)  # fmt: skip


def _planned(case: Case) -> Iterator[Problem]:
    """What doesn't go with the stage or the offload that was asked for."""
    strategy = case.strategy
    if strategy is None:
        return
    for clash in CLASHES:
        if clash.has(case.recipe) and clash.meets(strategy.zero_stage, strategy.offload):
            yield Problem(key=clash.key, message=clash.message, hint=clash.hint)


def _existing(case: Case) -> Iterator[Problem]:
    lora = case.recipe.lora
    if lora is None or lora.adapter is None:
        return
    if not (expanded(lora.adapter) / "adapter_config.json").is_file():
        yield Problem(
            key="lora.adapter",
            message=f"`{lora.adapter}` holds no adapters: it has no adapter_config.json",
            hint="the folder that peft or `dslm export` wrote",
        )


CHECKS = (
    Check(
        name="adapters and few bits that go with the rest",
        looks_at="quantize, lora, parallel, optimizer.name",
        judge=apart(_APART),
        verbs=TRAINING,
    ),
    Check(
        name="a partitioning that adapters and few bits go with",
        looks_at="quantize, lora, parallel.zero_stage, parallel.offload",
        judge=_planned,
        verbs=TRAINING,
        planned=True,
    ),
    Check(
        name="adapters that there are",
        looks_at="lora.adapter",
        judge=_existing,
        verbs=TRAINING,
        of_machine=True,
    ),
)
