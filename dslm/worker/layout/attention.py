"""Attention within documents, as an implementation that transformers' models can use.

Registered under `DOCUMENTS`. A hook reads the `position_ids` of every forward pass of the model, so
where its documents lie is known and no mask is made. On CUDA they go to a kernel for sequences of
any length (flash-attn where it is installed, else torch's own); elsewhere, and in fp32, documents
of about one length are computed together.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from dslm.recipe.packs import may_attend_by_lengths
from dslm.recipe.schema import Recipe
from dslm.worker.layout.documents import Bucket, Documents

DOCUMENTS = "documents"
PACKED_TASKS = ("pretrain", "sft", "sequence")  # whose batches say where documents begin
_LAYERS = {"full_attention", "sliding_attention"}
# entries of a model's config with which attention is another function than this one
_OTHERWISE = (
    "attn_logit_softcapping", "attention_chunk_size", "use_bidirectional_attention", "alibi",
)  # fmt: skip
_INPUTS = ("input_ids", "inputs_embeds")  # of a forward pass: either
_HALF = (torch.bfloat16, torch.float16)
_HEAD_MULTIPLE = 8  # of the size of a head, for the kernels

_Gather = Callable[[torch.Tensor], torch.Tensor]
_current: list[Documents] = []  # of the forward pass that runs; recomputation belongs to it as well


def use_documents(model: PreTrainedModel, recipe: Recipe) -> bool:
    """Let a model attend within documents, if it can; whether it does."""
    if recipe.task not in PACKED_TASKS or not may_attend_by_lengths(recipe):
        return False
    if not attends_plainly(model):
        return False
    without_adapters(model).set_attn_implementation(DOCUMENTS)
    watch(model)
    return True


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Return transformers' model, also of one that peft put adapters on."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def attends_plainly(model: PreTrainedModel) -> bool:
    """Return whether a model's attention is causal, full or within a window, and nothing else."""
    base = without_adapters(model)
    config = base.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ()
    return (
        type(base)._can_set_attn_implementation()
        and bool(base._supports_sdpa)
        and not any(getattr(config, name, None) for name in _OTHERWISE)
        and set(layers) <= _LAYERS
    )


def watch(model: PreTrainedModel, gather: _Gather = lambda positions: positions) -> None:
    """Note the documents of every forward pass of a model.

    Args:
        model: the model.
        gather: makes whole samples' positions of this rank's part of them.
    """

    def note(module: torch.nn.Module, args: Any, settings: dict[str, Any]) -> None:
        positions = settings.get("position_ids")
        if positions is None:
            given = next(v for n in _INPUTS if (v := settings.get(n, *args[:1])) is not None)
            positions = torch.arange(given.shape[1], device=given.device).expand(given.shape[:2])
        _current[:] = [Documents.of(gather(positions))]

    model.register_forward_pre_hook(note, with_kwargs=True)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, L, E)
    key: torch.Tensor,  # (B, K, L, E)
    value: torch.Tensor,  # (B, K, L, E)
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the documents of the forward pass; (B, L, H, E), and no weights."""
    unknown = [n for n in ("softcap", "s_aux", "position_bias") if settings.get(n) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention within documents has no {unknown or 'mask'}")
    documents = _current[0]
    window = sliding_window if sliding_window and sliding_window < documents.longest else None
    flat = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]  # (B·L, ·, E)
    kernel = _kernel(query) if not dropout else None
    if kernel is not None:
        found = kernel(*flat, documents, scaling, window)
    elif documents.whole and window is None:
        found = _together(query, key, value, None, scaling, dropout).transpose(1, 2).flatten(0, 1)
    else:
        found = _by_length(flat, documents, scaling, dropout, window)
    return found.unflatten(0, documents.shape), None


def _together(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip


def _by_length(
    flat: list[torch.Tensor],
    documents: Documents,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    parts = []
    for bucket in documents.buckets:
        states = [each[bucket.tokens].transpose(1, 2) for each in flat]  # (n, ·, T, E)
        mask = _band(bucket, window) if window is not None else None
        # padding stands behind every real token: causal attention doesn't see it
        found = _together(states[0], states[1], states[2], mask, scaling, dropout)
        parts.append(found.transpose(1, 2)[bucket.real])
    return torch.cat(parts)[documents.order]


def _band(bucket: Bucket, window: int) -> torch.Tensor | None:
    """The mask of a window within a document, (T, T); None where no document is longer."""
    length = bucket.tokens.shape[1]
    if length <= window:
        return None
    places = torch.arange(length, device=bucket.tokens.device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < window)


def _kernel(query: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """The kernel for sequences of any length, on a device and in a precision that has one."""
    if query.device.type != "cuda" or query.dtype not in _HALF or query.shape[-1] % _HEAD_MULTIPLE:
        return None
    return _flash if importlib.util.find_spec("flash_attn") else _varlen


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    documents: Documents, scaling: float | None, window: int | None,
) -> torch.Tensor:  # fmt: skip
    from flash_attn import flash_attn_varlen_func

    ends, longest = documents.cumulative, documents.longest
    found: torch.Tensor = flash_attn_varlen_func(
        query, key, value, ends, ends, longest, longest, softmax_scale=scaling, causal=True,
        window_size=_sides(window),
    )  # fmt: skip
    return found


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    documents: Documents, scaling: float | None, window: int | None,
) -> torch.Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = documents.cumulative, documents.longest
    left = _sides(window)[0]
    found = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(left, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    return found if isinstance(found, torch.Tensor) else found[0]


def _sides(window: int | None) -> tuple[int, int]:
    """How far a token sees to both sides, as kernels have it: -1 is without end."""
    return (window - 1 if window is not None else -1), 0


AttentionInterface.register(DOCUMENTS, attend)
