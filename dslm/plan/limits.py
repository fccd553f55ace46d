"""Limits of a recipe on a cluster: the longest sequence, the largest micro batch that fit."""

from __future__ import annotations

from collections.abc import Callable

from dslm.cluster.hosts import Cluster
from dslm.errors import RecipeError
from dslm.plan.runnable import Permits, nothing_shared
from dslm.plan.search import Plan, choose, data_parallel_size
from dslm.profile.value import Profile
from dslm.recipe.schema import Recipe

_STEP = 128  # tokens: finer than this nobody chooses
_LONGEST = 2**24
_LARGEST = 2**16


def longest(
    recipe: Recipe, cluster: Cluster, profile: Profile, permits: Permits = nothing_shared
) -> tuple[int, Plan] | None:
    """The longest sequence that fits, up to the model's positions; None: not the shortest one.

    In steps of 128 tokens; everything else that the recipe leaves open is chosen anew.
    """
    limit = profile.max_positions or _LONGEST
    step = min(_STEP, limit)

    def plan(steps: int) -> Plan:
        data = recipe.data.model_copy(update={"sequence_length": steps * step})
        return choose(recipe.model_copy(update={"data": data}), cluster, profile, permits)

    found = _last(plan, limit // step)
    return (found[0] * step, found[1]) if found else None


def largest(
    recipe: Recipe, cluster: Cluster, profile: Profile, permits: Permits = nothing_shared
) -> tuple[int, Plan] | None:
    """Return the largest micro batch that fits; None: not even one sequence.

    The global batch becomes the next multiple that it can be split into.
    """
    alone = recipe.batch.model_copy(update={"global_size": cluster.world_size, "micro_size": 1})
    tensor, sequence = recipe.parallel.tensor, recipe.parallel.sequence
    ranks = data_parallel_size(
        recipe.model_copy(update={"batch": alone}),
        cluster,
        tensor=tensor if isinstance(tensor, int) else 1,
        sequence=sequence if isinstance(sequence, int) else 1,
    )

    def plan(micro: int) -> Plan:
        unit = micro * ranks
        size = -(-recipe.batch.global_size // unit) * unit
        batch = recipe.batch.model_copy(update={"micro_size": micro, "global_size": size})
        return choose(recipe.model_copy(update={"batch": batch}), cluster, profile, permits)

    return _last(plan, _LARGEST)


def _last(plan: Callable[[int], Plan], limit: int) -> tuple[int, Plan] | None:
    """The last number whose plan fits, of those up to a limit: more never needs less."""

    def fits(number: int) -> Plan | None:
        try:
            found = plan(number)
        except RecipeError:
            return None
        return found if found.fits else None

    best, low, high = fits(1), 1, 2
    if best is None:
        return None
    while high <= limit and (found := fits(high)) is not None:
        best, low, high = found, high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        found = fits(middle)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return low, best
