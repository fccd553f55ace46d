"""What `dslm train` can run: which sizes of shared work the search may propose.

A plan never promises what training refuses. What that is, dslm/decide/checks/layout.py says, which
knows the model's code; whoever plans hands it down as `Permits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dslm.cluster.hosts import Cluster
from dslm.recipe.schema import Recipe

Shared = Literal["tensor", "sequence"]

# Tasks in which ranks can share layers (AutoTP) or sequences (Ulysses). Whoever teaches the worker
# another one adds it here.
TASKS: dict[Shared, frozenset[str]] = {
    "tensor": frozenset({"pretrain", "sequence"}),
    "sequence": frozenset({"pretrain"}),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many ranks share layers, sequences and experts."""

    tensor: int = 1
    sequence: int = 1
    expert: int = 1

    @property
    def alone(self) -> bool:
        """Whether ranks share nothing."""
        return self.tensor == self.sequence == self.expert == 1


Permits = Callable[[Recipe, Cluster, Sizes], bool]


def nothing_shared(recipe: Recipe, cluster: Cluster, sizes: Sizes) -> bool:
    """Permit only what every model can do: of one that nobody asked about nothing is known."""
    return sizes.alone


def can_share(what: Shared, task: str) -> bool:
    """Return whether ranks of a training can share layers or sequences."""
    return task in TASKS[what]
