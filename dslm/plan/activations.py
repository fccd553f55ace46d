"""What a pass keeps and needs, at each moment: terms from the levels of a profile.

What a trace found is counted as it is; what stage 3 keeps of it beyond that is a term of its own.
"""

from __future__ import annotations

import functools

from dslm.plan.generation import generation_terms
from dslm.plan.ledger import Moment, Term
from dslm.plan.states import RankMemory
from dslm.plan.strategy import Strategy
from dslm.profile.levels import LAYER, ById, Level, Levels, levels
from dslm.profile.value import Profile
from dslm.recipe.preferences import sequences
from dslm.recipe.schema import Recipe

_HELD = "zero/linear.py, LinearFunctionForZeroStage3"


def pass_levels(
    recipe: Recipe, profile: Profile, strategy: Strategy, *, with_held: bool = False
) -> Levels:
    """Return the levels of a forward and backward pass of one micro batch.

    `with_held`: with the inputs of frozen weights, if DeepSpeed keeps them.
    """
    mode = "recompute" if strategy.activation_checkpointing else "plain"
    samples = strategy.micro_batch_size * sequences(recipe)
    return _levels(
        ById(profile), mode, samples, sample_length(recipe, profile),
        strategy.tensor_parallel, strategy.sequence_parallel,
        with_held and _holds(recipe, strategy),
    )  # fmt: skip


def sample_length(recipe: Recipe, profile: Profile) -> int:
    """Tokens of a sample, as the profile's polynomials have it."""
    return profile.fixed_length or recipe.data.sequence_length


def activations(states: RankMemory, seen: Levels, held: Levels) -> list[Term]:
    """Return the activations at each moment of a pass, and gradients that come meanwhile."""
    plain, more = _by_moment(states, seen), _by_moment(states, held)
    terms = []
    for moment, (level, came) in plain.items():
        source = "the whole partition" if moment is Moment.FIRST_LAYER else "traced"
        further = int(sum(more[moment])) - int(level + came)
        terms += [
            _term("activations", level, moment, "traced"),
            *([_term("gradients that came", came, moment, source)] if came else []),
            *([_term("inputs of frozen weights", further, moment, _HELD)] if further else []),
        ]
    return terms


def evaluation(recipe: Recipe, profile: Profile, strategy: Strategy) -> list[Term]:
    """Return what a forward pass takes that keeps nothing; or prompts are answered."""
    if recipe.task == "grpo":
        return generation_terms(recipe, profile, strategy)
    seen = _levels(
        ById(profile), "evaluation", strategy.micro_batch_size, sample_length(recipe, profile),
        strategy.tensor_parallel, strategy.sequence_parallel, False,
    )  # fmt: skip
    return [_term("activations", seen.forward, Moment.EVALUATION, "traced, without gradients")]


def _term(name: str, bytes_: float, moment: Moment, source: str) -> Term:
    return Term(
        name=name, bytes=int(bytes_), lives=frozenset({moment}), source=source, kind="activations"
    )


def _holds(recipe: Recipe, strategy: Strategy) -> bool:
    """Whether a linear layer keeps its input though its weight is frozen.

    Not where the weights are packed: those have a function of their own (see `few_bits`).
    """
    section: object = recipe.deepspeed.get("zero_optimization", {})
    own = section.get("memory_efficient_linear", True) if isinstance(section, dict) else True
    return strategy.zero_stage == 3 and own is True and recipe.quantize is None


@functools.lru_cache(maxsize=4096)  # the search asks for the same pass under every strategy
def _levels(
    key: ById, mode: str, samples: int, length: int, tensor: int, sequence: int, held: bool
) -> Levels:
    # of ranks that share a sequence each has its part of the tokens, and for attention all of them
    # and a part of the heads: as much (DeepSpeed Ulysses, arXiv 2309.14509, section 3)
    own = -(-length // sequence)
    one = key.profile.pass_of(mode, samples, stage_3=held)
    return levels(one, samples, own, tensor=tensor)


def _by_moment(states: RankMemory, seen: Levels) -> dict[Moment, tuple[float, float]]:
    """Bytes of activations, and of gradients that came, at each moment of a pass."""

    def level(one: Level) -> float:
        return one.kept if states.stay else one.let_go

    layers = [one for one in seen.backward if one.name == LAYER] or [seen.head]
    last, first = layers[0], layers[-1]
    total = max(first.gradients, 1.0)

    def arrived(one: Level) -> float:
        share = (one.gradients - last.gradients) / max(total - last.gradients, 1.0)
        return states.arrived * min(1.0, max(0.0, share))

    # the head's backward pass is the loss; what comes behind the layers has all their gradients
    between = max(layers, key=lambda one: level(one) + arrived(one))
    behind = [one for one in seen.backward[1:] if one.name != LAYER]
    end = max([level(first), *(level(one) for one in behind)])
    return {
        Moment.FORWARD: (seen.forward, 0.0),
        Moment.LOSS: (level(seen.head), 0.0),
        Moment.LAST_LAYER: (level(last), 0.0),
        Moment.BETWEEN: (level(between), arrived(between)),
        Moment.FIRST_LAYER: (end, states.arrived),
    }
