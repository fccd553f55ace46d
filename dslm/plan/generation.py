"""Answering prompts within a training: what it holds on a device, and how long it takes.

A token of an answer is a forward pass over one token of each answer, which reads the keys and
values of all tokens before it. Under stage 3 the whole model is gathered for that on each rank
(TRL's `ds3_gather_for_generation`).
"""

from __future__ import annotations

from dslm.cluster.speed import Speed
from dslm.plan.ledger import Moment, Term
from dslm.plan.roofline import passes
from dslm.plan.strategy import Strategy
from dslm.profile.levels import ById
from dslm.profile.value import Profile
from dslm.recipe.schema import Recipe
from dslm.units import number_of

_SCORE = 4 + 8 + 8  # bytes of a token's score, of the noise that is added, and of both
_KEYS = ("k_proj.weight", "key.weight")


def generation_terms(recipe: Recipe, profile: Profile, strategy: Strategy) -> list[Term]:
    """The cache of keys and values, the scores of the next token, the gathered model."""
    rows = _rows(recipe, strategy)
    tokens = rows * recipe.data.sequence_length
    gathered = profile.total * profile.element if strategy.zero_stage == 3 else 0

    def term(name: str, size: int, source: str) -> Term:
        return Term(
            name=name, bytes=size, lives=frozenset({Moment.EVALUATION}), source=source,
            kind="activations",
        )  # fmt: skip

    said = f"{number_of(rows, 'answer')} at once"
    return [
        term("cache of keys and values", tokens * _cached(profile), said),
        term("scores of the next token", rows * profile.vocab_size * _SCORE, said),
        term("parameters gathered to generate", gathered, "the whole model, on each rank"),
    ]


def generation_seconds(
    recipe: Recipe, profile: Profile, strategy: Strategy, speed: Speed, *, on_cpu: bool
) -> float:
    """Seconds of generating in an optimizer step, when every answer is as long as it may be."""
    rows, answer = _rows(recipe, strategy), recipe.rollout.max_tokens
    all_rows = strategy.micro_batch_size * strategy.gradient_accumulation_steps
    prompt = max(1, recipe.data.sequence_length - answer)
    key = ById(profile)
    first = passes(key, "evaluation", rows, prompt)[0].seconds(speed, on_cpu=on_cpu)
    each = passes(key, "evaluation", rows, 1)[0].seconds(speed, on_cpu=on_cpu)
    seen = rows * (prompt + answer / 2) * _cached(profile) / speed.memory
    times = -(-all_rows // rows)
    return times * (first + answer * (each + seen)) / recipe.rollout.rounds


def _rows(recipe: Recipe, strategy: Strategy) -> int:
    """Answers of a rank that are generated together."""
    whole = strategy.micro_batch_size * strategy.gradient_accumulation_steps
    return min(whole, recipe.rollout.at_once or whole)


def _cached(profile: Profile) -> int:
    """Bytes of the keys and values of one token."""
    keys = [g.shape[0] for g in profile.parameters if g.layer and g.name.endswith(_KEYS)]
    width = keys[0] if keys else profile.hidden_size * profile.kv_heads // max(1, profile.heads)
    return 2 * profile.layers * width * profile.element
