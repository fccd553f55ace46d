"""Sequences shared by ranks: DeepSpeed's Ulysses around attention within documents.

Each rank of a group has its part of every sample's tokens; for attention the ranks exchange tokens
for heads, so that each has whole samples and a part of the heads (arXiv 2309.14509). The labels are
shifted before a sample is cut: what a part's last token predicts is the next part's first.

To ZeRO these are data-parallel ranks, whose losses add up to the batch's. DeepSpeed is told of no
groups: it would weight gradients by their size, at stage 3 in one of two ways to reduce them only
(runtime/zero/stage3.py, `__avg_scatter_grads`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import AttentionInterface, PreTrainedModel

from dslm.worker.data.packing import IGNORED
from dslm.worker.layout.attention import attend, watch, without_adapters
from dslm.worker.layout.ranks import Layout

T = TypeVar("T")
_SHARED = "documents_of_shared_sequences"
_groups: list[Any] = []  # the group of this rank, since sequences are shared


def share_sequences(model: PreTrainedModel, layout: Layout, micro_batch: int) -> None:
    """Let the ranks of a sequence group share the tokens of every forward pass of a model."""
    starts = range(0, layout.world_size, layout.sequence)
    groups = [dist.new_group(range(start, start + layout.sequence)) for start in starts]
    group = groups[layout.rank // layout.sequence]
    _groups[:] = [group]
    base = without_adapters(model)
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    exchange = UlyssesSPAttentionHF(
        attn=attend,
        batch_size=micro_batch,
        attn_head_count=heads,
        attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        kv_head_count=getattr(config, "num_key_value_heads", None) or heads,
        num_hidden_layers=config.num_hidden_layers,
        process_group=group,
        seq_length_is_variable=True,
    )
    parts: list[torch.Tensor] = []  # the positions of this rank's tokens

    def gathered(positions: torch.Tensor) -> torch.Tensor:
        parts[:] = [positions.contiguous()]
        return _whole(parts[0])

    def attend_shared(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        settings["position_ids"] = parts[0]
        found, _ = exchange(module, query, key, value, attention_mask, **settings)
        return found.unflatten(-1, (heads, -1)), None

    AttentionInterface.register(_SHARED, attend_shared)
    base.set_attn_implementation(_SHARED)
    watch(model, gathered)


def part_of(batch: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """This rank's part of a batch (B, L) of whole samples, with labels that are shifted already."""
    if layout.sequence == 1:
        return batch
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    length = shifted.shape[1] // layout.sequence
    start = layout.rank % layout.sequence * length
    parts = {
        name: value[:, start : start + length].contiguous()
        for name, value in {**batch, "shift_labels": shifted}.items()
        if isinstance(value, torch.Tensor) and value.shape[:2] == shifted.shape
    }
    return {**batch, **parts}


def whole_samples(parts: T) -> T:
    """Return whole samples (B, L, …) of this rank's part of their tokens, in whatever they lie."""
    tensors, kind = tree_flatten(parts)
    whole: T = tree_unflatten(
        [_whole(each) if isinstance(each, torch.Tensor) else each for each in tensors], kind
    )
    return whole


def _whole(part: torch.Tensor) -> torch.Tensor:
    group = _groups[0]
    found = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, part.contiguous(), group=group)
    return torch.cat(found, dim=1)
