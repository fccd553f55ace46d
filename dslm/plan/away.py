"""Activations that are kept in the host's memory until they are recomputed from.

Source: transformers' activation_checkpointing_enable(offload=True): the input of each layer,
pinned; both copies run on the stream that computes.
"""

from __future__ import annotations

from dslm.plan.ledger import PASS, Place, Term
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile
from dslm.recipe.preferences import sequences
from dslm.recipe.schema import Recipe

_SOURCE = "transformers, save_on_cpu around each layer"


def away_bytes(recipe: Recipe, profile: Profile, strategy: Strategy) -> int:
    """Return bytes of a rank that lie on its host between forward and backward pass."""
    if recipe.model.offload_activations is not True or not strategy.activation_checkpointing:
        return 0
    length = (profile.fixed_length or recipe.data.sequence_length) / strategy.sequence_parallel
    tokens = strategy.micro_batch_size * sequences(recipe) * length
    return int(profile.layers * tokens * profile.hidden_size * profile.element)


def away_terms(recipe: Recipe, profile: Profile, strategy: Strategy) -> tuple[Term, ...]:
    """Return the term of the host."""
    size = away_bytes(recipe, profile, strategy)
    if not size:
        return ()
    return (
        Term(
            name="activations away", bytes=size, lives=PASS, source=_SOURCE, place=Place.PINNED,
            kind="activations",
        ),
    )  # fmt: skip
