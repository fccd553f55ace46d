"""What tasks that learn from preferences need beside the model, for the rooms that plan and build.

A reference is the model as it was at the start, which a loss compares with: a second model, the
same one without its adapters, or log-probabilities that were computed once.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from dslm.recipe.schema import Recipe

Reference: TypeAlias = Literal["none", "model", "adapters", "precomputed"]

PAIRS = frozenset({"dpo", "orpo", "reward"})  # a sample is two sequences
PREFERENCES = PAIRS | {"kto"}
COMPARING = frozenset({"dpo", "kto"})  # with a reference
# their losses multiply with the head, or read its logits, by themselves
WHOLE_HEAD = frozenset({"dpo", "orpo", "kto", "grpo"})


def sequences(recipe: Recipe) -> int:
    """Sequences that a sample of the task is trained on."""
    return 2 if recipe.task in PAIRS else 1


def reference_of(recipe: Recipe) -> Reference:
    """Return what the loss compares with, and where that comes from."""
    penalty = recipe.task == "grpo" and bool(recipe.training_args.get("beta"))
    if recipe.task not in COMPARING and not penalty:
        return "none"
    if recipe.reference == "precomputed" and not penalty:
        return "precomputed"
    return "adapters" if recipe.lora is not None else "model"


def passes_beside(recipe: Recipe) -> int:
    """Forward passes over a sample beside the one that is learnt from.

    The reference's; for KTO also its own and the reference's over a foreign answer.
    """
    compares = reference_of(recipe) in ("model", "adapters")
    if recipe.task == "kto":
        return 3 if compares else 1
    if recipe.task == "grpo":  # what the answers of a round were drawn with
        return int(compares) + int(recipe.rollout.rounds > 1)
    return int(compares)
