"""Does a model keep the documents of a pack apart? What was measured of it, and what follows.

A model is told where documents lie in one of two ways: by their lengths, which is attention of
dslm's own, or by what transformers makes of their positions or of a mask. Which of them keep the
documents apart is measured on a small model of the same kind (dslm/worker/layout/apart.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from dslm.recipe.schema import Recipe

BY_LENGTHS, BY_MASK = "lengths", "mask"
PACKED_TASKS = ("pretrain", "sft", "sequence", "mlm")


def is_packed(recipe: Recipe) -> bool:
    """Return whether several documents may share a sample of a recipe."""
    return recipe.data.packing and recipe.task in PACKED_TASKS


def may_attend_by_lengths(recipe: Recipe) -> bool:
    """Return whether a recipe leaves attention to dslm; compilers have a mask's shape only."""
    model = recipe.model
    return model.attention == "auto" and not model.compile and not model.deepcompile


def way_of(recipe: Recipe, apart: Mapping[str, bool]) -> str:
    """Return how a model is told where documents lie."""
    return BY_LENGTHS if may_attend_by_lengths(recipe) and BY_LENGTHS in apart else BY_MASK


def leaks(recipe: Recipe, apart: Mapping[str, bool]) -> bool:
    """Return whether documents of a recipe's samples are known to see each other.

    Args:
        recipe: the recipe.
        apart: by each way in which its model can be told, whether that keeps them apart; empty:
            nobody knows.
    """
    return is_packed(recipe) and apart.get(way_of(recipe, apart)) is False


def refusal(kind: str) -> tuple[str, str]:
    """Return what is wrong with packs for a type of model, and the way out."""
    return (
        f"a model of type `{kind}` doesn't keep the documents of a sample apart: each would be "
        "learnt with those before it in view (measured on a small one)",
        "`--set data.packing=false`: a sample for each document",
    )
