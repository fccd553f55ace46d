"""What ranks that share experts hold and send: by the profile's own parameters and products."""

from __future__ import annotations

from dslm.plan.roofline import passes
from dslm.plan.strategy import Strategy
from dslm.profile.levels import ById
from dslm.profile.value import ParameterGroup, Profile


def held(group: ParameterGroup, strategy: Strategy) -> int:
    """Elements of a group that a rank holds before ZeRO partitions them.

    Ranks share layers (AutoTP) and the experts of each layer (AutoEP).
    """
    ranks = strategy.tensor_parallel if group.layer else 1
    ranks *= strategy.expert_parallel if group.expert else 1
    return -(-group.total // ranks)


def experts_of_a_token(profile: Profile, length: int) -> float:
    """Through how many experts a token goes, in all layers together.

    What the products of the layers compute beyond their dense matrices, in experts.
    """
    samples = 2
    layers = passes(ById(profile), "evaluation", samples, length)[0].layers
    active = layers.product_flops / (2 * samples * length)
    groups = [g for g in profile.parameters if g.layer and len(g.shape) > 1]
    dense = sum(g.total for g in groups if not g.expert)
    # one expert's matrices: all experts of a layer lie in one tensor, or each in its own
    single = sum(
        g.total // (g.shape[0] if len(g.shape) > 2 else max(1, g.count // profile.layers))
        for g in groups
        if g.expert
    ) / max(1, profile.layers)
    return max(0.0, active - dense) / single if single else 0.0
