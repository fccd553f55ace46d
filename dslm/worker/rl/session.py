"""What a training by rewards is told of its run."""

from __future__ import annotations

from dataclasses import dataclass

from dslm.recipe.schema import Recipe
from dslm.worker.layout.ranks import Layout
from dslm.worker.ranks import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A resolved recipe, this rank's place, and the optimizer step at which the attempt begins.

    `rank` None: nothing is trained, and nobody watches.
    """

    recipe: Recipe
    rank: Rank | None
    layout: Layout
    start_step: int

    def note(self) -> None:
        """Note that there is progress."""
        if self.rank is not None:
            self.rank.guard.note()
