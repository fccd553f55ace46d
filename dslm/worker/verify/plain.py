"""The plainest model that a layout is compared with, and what measures its noise.

Beside a model in few bits the plain one has the weights that these bits stand for; its noise is
that of the same model in few bits, in one process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import set_seed

from dslm.worker.adapters import with_lora
from dslm.worker.assignment import Assignment, Inputs
from dslm.worker.model import build_model
from dslm.worker.number_formats import DTYPES
from dslm.worker.verify.learnt import Learnt, Tokens
from dslm.worker.verify.preferences import PREFERENCES
from dslm.worker.verify.reference import Reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """The reference, and how to make one in the recipe's own number format."""

    reference: Reference
    own_format: Callable[[], Reference]


def plain_of(
    given: Assignment, inputs: Inputs, settings: dict[str, Any], words: int | None
) -> Plain:
    """Build it: fp32, eager attention, nothing recomputed, fused or compiled.

    Called before there are TrainingArguments: under ZeRO-3 a model is partitioned after that.
    """
    own = {"attention": "eager", "activation_checkpointing": False, "liger": False}
    own |= {"compile": False, "chunked_loss": False}
    recipe = given.recipe.model_copy(update={"model": given.recipe.model.model_copy(update=own)})

    def built(**changes: Any) -> Any:
        set_seed(recipe.seed)
        return build_model(
            recipe.model_copy(update=changes), inputs.task.auto_class, inputs.tokenizer, **settings
        )

    few = None
    if recipe.quantize is None:
        model = built(precision="fp32")
    else:
        few = built()
        whole = built(lora=None).dequantize().float()
        model = with_lora(whole, recipe.model_copy(update={"precision": "fp32"}))
        _begin_alike(model, few)

    def learnt() -> Learnt:
        kind = PREFERENCES.get(recipe.task)
        if kind is not None and inputs.task.trainer is not None:
            return kind(recipe, inputs.task.trainer()[1], words)
        collate = inputs.task.collator(recipe, inputs.tokenizer, model.config)
        return Tokens(recipe, collate, words)

    def own_format() -> Reference:
        if few is not None:
            return Reference(few, learnt())
        return Reference(copy.deepcopy(model).to(DTYPES[recipe.precision]), learnt())

    return Plain(reference=Reference(model, learnt()), own_format=own_format)


def _begin_alike(model: torch.nn.Module, few: torch.nn.Module) -> None:
    """Let adapters begin as those beside the same model in few bits, which drew their numbers."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in few.named_parameters():
            if parameter.requires_grad:
                own[name].copy_(parameter)
