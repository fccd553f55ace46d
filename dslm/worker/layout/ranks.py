"""Which ranks do what: the layout of a run, as one rank sees it.

Ranks that stand next to each other share a batch: those of one tensor group its layers, those of
one sequence group its tokens. Experts are shared across data-parallel ranks, so they change nothing
of who reads what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The sizes of a layout, and the place of a rank in it."""

    world_size: int
    rank: int
    stage: int = 0
    tensor: int = 1
    sequence: int = 1
    expert: int = 1

    @staticmethod
    def of(config: dict[str, Any], *, rank: int, world_size: int) -> Layout:
        """Return the layout that a resolved DeepSpeed config describes."""

        def size(section: str, key: str) -> int:
            return int(config.get(section, {}).get(key) or 1)

        return Layout(
            world_size=world_size,
            rank=rank,
            stage=int(config["zero_optimization"]["stage"]),
            tensor=size("tensor_parallel", "autotp_size"),
            sequence=int(config.get("sequence_parallel_size") or 1),
            expert=size("expert_parallel", "autoep_size"),
        )

    @property
    def sharing(self) -> int:
        """How many ranks read the same samples."""
        return self.tensor * self.sequence

    @property
    def shares_parameters(self) -> bool:
        """Whether a rank has parts of parameters that DeepSpeed's ZeRO doesn't put together."""
        return self.tensor > 1 or self.expert > 1

    @property
    def data_size(self) -> int:
        """The data-parallel size: how many different batches a micro step reads."""
        return self.world_size // self.sharing

    @property
    def data_rank(self) -> int:
        """Which of those batches this rank reads."""
        return self.rank // self.sharing

    @property
    def reads_first(self) -> bool:
        """Whether this rank speaks for those that read the same samples."""
        return self.rank % self.sharing == 0
