"""A strategy: everything that planning chooses about one run."""

from __future__ import annotations

from dataclasses import dataclass

from dslm.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """Stage, offload, batch split and parallel sizes: all resolved, no `auto` left."""

    zero_stage: int
    offload: str  # none | optimizer | all | nvme
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: bool
    tensor_parallel: int
    sequence_parallel: int
    data_parallel_size: int
    expert_parallel: int = 1  # across data-parallel ranks: they read different samples
    second_partition: bool = False  # of the parameters inside each host (hpZ)

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.data_parallel_size


def settled(recipe: Recipe, strategy: Strategy) -> Recipe:
    """Return a recipe with every `auto` of batch and partitioning replaced by what was chosen."""
    parallel = {
        "zero_stage": strategy.zero_stage,
        "offload": strategy.offload,
        "tensor": strategy.tensor_parallel,
        "sequence": strategy.sequence_parallel,
        "expert": strategy.expert_parallel,
        "hpz": strategy.second_partition and not recipe.parallel.zeropp,
    }
    model = {"activation_checkpointing": strategy.activation_checkpointing}
    batch = {"micro_size": strategy.micro_batch_size}
    return recipe.model_copy(
        update={
            "batch": recipe.batch.model_copy(update=batch),
            "model": recipe.model.model_copy(update=model),
            "parallel": recipe.parallel.model_copy(update=parallel),
        }
    )
