"""What `dslm train` can run: which sizes of shared work the search may propose.

A plan never promises what training refuses. What that is, dslm/decide/checks/layout.py says, which
knows the model's code; whoever plans hands it down as `Permits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dslm.cluster.hosts import Cluster
from dslm.recipe.schema import PRINCIPAL, Recipe

Shared = Literal["tensor", "sequence"]

# Tasks in which ranks can share layers (AutoTP) or sequences (Ulysses). Whoever teaches the worker
# another one adds it here.
_TEXT = frozenset({"pretrain", "sequence", "sft"})
TASKS: dict[Shared, frozenset[str]] = {
    "tensor": _TEXT | {"classify", "dpo", "grpo", "kto", "orpo", "reward"},
    "sequence": _TEXT,
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


def begins_as_a_part(recipe: Recipe) -> bool:
    """Return whether new adapters begin as a part of the model, which is taken out of it."""
    lora = recipe.lora
    return lora is not None and lora.adapter is None and lora.init in PRINCIPAL


def has_two_rates(recipe: Recipe) -> bool:
    """Return whether adapters have two learning rates (LoRA+)."""
    return recipe.lora is not None and recipe.lora.b_lr_ratio != 1


@dataclass(frozen=True, slots=True)
class Clash:
    """A kind of adapters or of a model, and the stages and offloads that don't go with it."""

    key: str
    has: Callable[[Recipe], bool]
    meets: Callable[[int, str], bool]
    message: str
    hint: str


_LOWER = "`--set parallel.zero_stage=2`"
CLASHES = (
    Clash(
        "parallel.offload", lambda r: r.quantize is not None,
        lambda stage, offload: offload in ("all", "nvme"),
        "parameters in few bits can't be offloaded", "`--set parallel.offload=optimizer`",
    ),
    Clash(
        "quantize", lambda r: r.quantize == "int8", lambda stage, offload: stage == 3,
        "ZeRO stage 3 can't partition a model in 8 bits: its numbers are whole",
        f"`--set quantize=nf4`, or {_LOWER}",
    ),
    Clash(
        "lora.init", begins_as_a_part, lambda stage, offload: stage == 3,
        "adapters begin as a part of whole matrices, and ZeRO stage 3 partitions them",
        f"`--set lora.init=default`, or {_LOWER}",
    ),
    Clash(
        "lora.b_lr_ratio", has_two_rates, lambda stage, offload: offload != "none",
        "LoRA+ updates on the device, and the optimizer is offloaded", "leave one of them out",
    ),
)  # fmt: skip


def goes(recipe: Recipe, stage: int, offload: str) -> bool:
    """Return whether nothing in a recipe stands against a stage and an offload."""
    return not any(clash.has(recipe) and clash.meets(stage, offload) for clash in CLASHES)
