"""Features of DeepSpeed as ranks need them: what is put on a model, and what DeepSpeed gets wrong.

Twin-Flow updates what stays on the device by an optimizer of its own, whose learning rate nobody
sets again: it would learn at the first step's rate for ever (DeepSpeed 0.19.8,
runtime/zero/stage3.py, backup_optimizer). ZenFlow decides by itself after which micro batches the
columns of less weight are updated, and accelerate decides for it. ZeRO-3 learns which weights a
pass takes beside their module when it finds them partitioned; it doesn't find those that it has
prefetched, as an earlier pass took them, and their gradients come to partitioned weights
(runtime/zero/parameter_offload.py, ZeROOrderedDict). Every stage expects the gradients of all
ranks: those that each leave out layers at random (LayerDrop, arXiv 1909.11556) crash at stage 2.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import register_external_parameter
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from dslm.errors import RecipeError, Where
from dslm.recipe.schema import Recipe
from dslm.worker.layout.attention import without_adapters

LOSS_BLOCK = 2**22  # elements of the logits that are in fp32 at a time


def check_loss(model: PreTrainedModel, key: str = "model.chunked_loss") -> None:
    """Check that a model's loss is the one that there is in parts.

    Raises:
        RecipeError: it has a loss of its own.
    """
    if getattr(model, "loss_function", None) is not ForCausalLMLoss:
        raise RecipeError(
            f"a model of type `{model.config.model_type}` has a loss of its own, which can't be "
            "computed in parts",
            where=Where(key=key),
            hint=f"`--set {key}=false`",
        )


def run_every_layer(model: torch.nn.Module) -> None:
    """Let a model leave out no layer at random."""
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0  # type: ignore[assignment]


def put_on(model: PreTrainedModel, recipe: Recipe) -> None:
    """Put the features of a recipe on its model.

    Raises:
        RecipeError: the model's loss can't be computed in chunks.
    """
    if recipe.model.chunked_loss:
        from deepspeed.runtime.chunked_cross_entropy import install_chunked_causal_lm_loss

        base = without_adapters(model)
        check_loss(base)
        rows = max(1, LOSS_BLOCK // int(base.config.get_text_config().vocab_size))
        install_chunked_causal_lm_loss(base, block_rows=rows)


def hold_head(model: Any) -> None:
    """Let ZeRO-3 gather the head for whole passes, where a loss takes its weights by itself.

    TRL's losses do (trl/trainer/utils.py, add_fused_lm_head, which sets `forward`).
    """
    if "forward" not in vars(without_adapters(model)):
        return
    for weights in model.get_output_embeddings().parameters():
        register_external_parameter(model, weights)


def mend(recipe: Recipe) -> None:
    """Mend what DeepSpeed and accelerate do with the features of a recipe."""
    if recipe.parallel.offload_ratio < 1:
        _let_rates_follow()
    if recipe.parallel.zenflow:
        _let_zenflow_decide()


def _let_rates_follow() -> None:
    """Let what stays on the device learn at the rate of what is offloaded."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    native = DeepSpeedZeroOptimizer_Stage3._optimizer_step

    def step(optimizer: Any, group: int) -> None:
        kept = getattr(optimizer, "backup_optimizer", None)
        for mine, theirs in zip(
            kept.param_groups if kept else (), optimizer.optimizer.param_groups, strict=False
        ):
            mine["lr"] = theirs["lr"]
        native(optimizer, group)

    DeepSpeedZeroOptimizer_Stage3._optimizer_step = step


def _let_zenflow_decide() -> None:
    """Leave it to ZenFlow after which micro batches the whole model is updated."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    def keep(engine: DeepSpeedEngine, is_boundary: bool) -> None:
        """Decide nothing: accelerate calls this before each backward pass."""

    DeepSpeedEngine.set_gradient_accumulation_boundary = keep
