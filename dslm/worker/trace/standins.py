"""Stand-ins for kernels of an accelerator that a machine without one can't trace.

Each keeps for the backward pass what the kernel keeps, so that a trace on a CPU holds for CUDA:
attention the query, key, value, mask, output and log-sum-exp (PyTorch's
`_scaled_dot_product_efficient_attention` and flash-attn alike); dropout a mask of one byte an
element (`native_dropout`). Attention within documents (`dslm.worker.layout.attention`) asks tensors
for their values, so it has one too: on a CPU documents are gathered out of the batch and put back.
A product with a frozen weight says what stage 3 keeps of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dslm.worker.features import LOSS_BLOCK
from dslm.worker.layout import tiles
from dslm.worker.layout.attention import DOCUMENTS
from dslm.worker.layout.tiles import added
from dslm.worker.trace.timeline import Timeline

_BACKWARD = 2.5  # products of flash attention's backward pass over those of its forward (FA-2, 3.1)


class _Attention(torch.autograd.Function):
    """Attention of query, key and value (B, heads, L, size) with an optional mask."""

    @staticmethod
    def forward(ctx, timeline, query, key, value, mask):  # type: ignore[no-untyped-def]
        batch, heads, length = query.shape[:3]
        # kernels write their output in the order of the tokens
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, *(() if mask is None else (mask,)))
        ctx.timeline = timeline
        ctx.work = _work(query, key, value, mask)
        timeline.attended(*ctx.work)
        return output

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        query, key, value = ctx.saved_tensors[:3]
        flops, moved = ctx.work
        ctx.timeline.attended(int(_BACKWARD * flops), 2 * moved)
        made = tuple(_like(tensor) for tensor in (query, key, value))
        return None, *made, None


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """A gradient, in the order of the tokens as the kernels have it."""
    return torch.empty_like(
        tensor.transpose(1, 2), memory_format=torch.contiguous_format
    ).transpose(1, 2)


def _work(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[int, int]:
    """FLOPs and bytes; those of a mask tell its kernel from one that skips what is not seen."""
    rows = query.shape[0] * query.shape[1] * query.shape[2]
    flops = 2 * rows * key.shape[2] * (query.shape[3] + value.shape[3])
    read = query.numel() + key.numel() + value.numel() + rows * value.shape[3]
    seen = 0 if mask is None else mask.numel() * mask.element_size()
    return flops, read * query.element_size() + seen


class _Frozen(torch.autograd.Function):
    """A product with a frozen weight: nothing is kept but a token of what stage 3 keeps.

    Source: DeepSpeed's runtime/zero/linear.py, LinearFunctionForZeroStage3, which takes the place
    of `functional.linear` there and keeps its input whether or not the weight is trained.
    """

    @staticmethod
    def forward(ctx, timeline, plain, states, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, timeline.hold(states))
        return plain(states, weight, bias)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        weight, _ = ctx.saved_tensors
        _, _, of_states, _, of_bias = ctx.needs_input_grad
        return (
            None,
            None,
            gradient.matmul(weight) if of_states else None,
            None,
            gradient.flatten(0, -2).sum(0) if of_bias else None,
        )


def _linear(timeline: Timeline, plain: Callable[..., Any]) -> Callable[..., Any]:
    def linear(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if weight.requires_grad or not torch.is_grad_enabled():
            return plain(input, weight, bias)
        found: torch.Tensor = _Frozen.apply(timeline, plain, input, weight, bias)
        return found

    return linear


@contextmanager
def standing_in(timeline: Timeline, *, on_cpu: bool) -> Iterator[None]:
    """Use the stand-ins for attention in all its forms, dropout, tiles and frozen products."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = _attention(timeline, on_cpu=on_cpu)
    dropout = _dropout(timeline, functional.dropout, on_cpu=on_cpu)
    by_name = {
        "flash_attention_2": _flash(timeline),
        DOCUMENTS: _gathered(attention) if on_cpu else _flat(timeline, attention),
    }
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
        mock.patch.object(functional, "dropout", dropout),
        mock.patch.object(functional, "linear", _linear(timeline, functional.linear)),
        mock.patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, by_name),
        mock.patch.object(tiles, "by_tiles", _tiles(timeline)),
    ):
        yield


def _attention(timeline: Timeline, *, on_cpu: bool) -> Callable[..., Any]:
    """Stand in for SDPA; what no kernel can do is done in its parts, as PyTorch does it."""

    def sdpa(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        timeline.drops |= dropout_p > 0
        # no fused kernel repeats keys for several queries by itself; a CPU's drops nothing, and
        # has heads of one size (ATen/native/transformers/sdp_utils_cpp.h)
        repeats = query.ndim > 3 and key.shape[-3] != query.shape[-3] and not enable_gqa
        if repeats or (on_cpu and (dropout_p or value.shape[-1] != query.shape[-1])):
            return torch.ops.aten._scaled_dot_product_attention_math(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                None,
                scale=scale,
                enable_gqa=enable_gqa,
            )[0]
        lead = query.shape[:-3]
        if len(lead) != 1:  # kernels take four dimensions
            flat = [x.reshape(-1, *x.shape[-3:]) if lead else x[None] for x in (query, key, value)]
            output = _Attention.apply(timeline, *flat, None)
            return output.reshape(*query.shape[:-1], value.shape[-1])
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            # scaled_dot_product_attention itself makes numbers to add of true and false
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
                attn_mask.logical_not(), -torch.inf
            )
        return _Attention.apply(timeline, query, key, value, attn_mask)

    return sdpa


def _flash(timeline: Timeline) -> Callable[..., Any]:
    def flash(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *_: Any, **__: Any
    ) -> Any:
        return _Attention.apply(timeline, query, key, value, None).transpose(1, 2), None

    return flash


def _tokens(states: torch.Tensor) -> torch.Tensor:
    """States (B, H, L, E) as the kernels for sequences of any length take them: (B·L, H, E)."""
    return states.transpose(1, 2).flatten(0, 1)


def _flat(timeline: Timeline, attention: Callable[..., Any]) -> Callable[..., Any]:
    """Attention within documents by a kernel that takes their lengths."""
    gathered = _gathered(attention)

    def documents(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        dropout: float = 0.0,
        **rest: Any,
    ) -> Any:
        if dropout:  # which the kernels don't have
            return gathered(module, query, key, value, attention_mask, dropout, **rest)
        shape = query.shape[0], query.shape[2]
        flat = [_tokens(states) for states in (query, key, value)]
        seen = [each.unflatten(0, shape).transpose(1, 2) for each in flat]
        return _Attention.apply(timeline, *seen, None).transpose(1, 2), None

    return documents


def _gathered(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Attention within documents that are gathered by their lengths: here all are of one."""
    places: dict[tuple[int, int], torch.Tensor] = {}  # of a pass: all its layers share them

    def documents(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        dropout: float = 0.0,
        **rest: Any,
    ) -> Any:
        shape = query.shape[0], query.shape[2]
        order = places.get(shape)
        if order is None:
            order = places[shape] = torch.empty(shape, dtype=torch.long, device=query.device)
        flat = [_tokens(states) for states in (query, key, value)]
        states = [each[order].transpose(1, 2) for each in flat]
        few = states[1].shape[1] != states[0].shape[1]
        found = attention(*states, None, dropout, True, enable_gqa=few)
        flat_found = found.transpose(1, 2).flatten(0, 1)
        # real tokens out of padded documents, of all lengths, in the order of the batch
        real = torch.empty((2, order.numel()), dtype=torch.long, device=query.device)
        back = torch.cat([flat_found[real[0]]])[order.flatten()]
        return back.unflatten(0, shape), None

    return documents


def _dropout(timeline: Timeline, plain: Callable[..., Any], *, on_cpu: bool) -> Callable[..., Any]:
    """Stand in for dropout; on a CPU its masks are as wide as the input, as `plain` has them."""

    def dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if not training or not p:
            return input
        timeline.drops = True
        if on_cpu:
            return plain(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    return dropout


class _FusedLoss(torch.autograd.Function):
    """Liger's loss of hidden states (T, H) and the head's weight (V, H).

    Source: liger_kernel/ops/fused_linear_cross_entropy.py: logits of a few tokens at a time, as
    many pieces as V / H; gradients of both are made in the forward pass.
    """

    @staticmethod
    def forward(ctx, hidden, weight):  # type: ignore[no-untyped-def]
        tokens, vocabulary = hidden.shape[:-1].numel(), weight.shape[0]
        rows = -(-tokens * hidden.shape[-1] // vocabulary)
        kept = [torch.empty_like(hidden)]
        if weight.requires_grad:
            kept.append(torch.empty_like(weight))
        logits = hidden.new_empty((rows, vocabulary))
        logits.float()
        ctx.save_for_backward(*kept)
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        hidden, *weight = ctx.saved_tensors
        return hidden, *(weight or [None])


def fuse_loss(model: Any) -> None:
    """Compute the loss from hidden states, as Liger does; the head itself multiplies nothing."""
    head = model.get_output_embeddings()
    head.forward = lambda hidden: hidden
    model.loss_function = lambda logits, labels, **_: _FusedLoss.apply(logits, head.weight)


class _ChunkedLoss(torch.autograd.Function):
    """DeepSpeed's loss of logits (T, V) in chunks.

    Source: runtime/chunked_cross_entropy.py: the logits are kept as they are, with a sum for each
    token; a block of them is there in fp32, and once more.
    """

    @staticmethod
    def forward(ctx, logits):  # type: ignore[no-untyped-def]
        rows = logits.shape[:-1].numel()
        block = logits.new_empty((2, LOSS_BLOCK), dtype=torch.float32)
        del block
        sums = logits.new_empty((rows,), dtype=torch.float32)
        ctx.save_for_backward(logits, sums)
        return logits.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        logits, _ = ctx.saved_tensors
        found = torch.empty_like(logits)
        block = logits.new_empty((2, LOSS_BLOCK), dtype=torch.float32)
        del block
        return found


def chunk_loss(model: Any) -> None:
    """Compute the loss as DeepSpeed does in chunks."""
    model.loss_function = lambda logits, labels, **_: _ChunkedLoss.apply(logits)


class _Tiles(torch.autograd.Function):
    """Work on tiles of tokens (dslm.worker.layout.tiles): two are run, and stand for all of them.

    The second meets what the first left: a gradient so far of each weight.
    """

    @staticmethod
    def forward(ctx, timeline, run, rows, beside, states, *parameters):  # type: ignore[no-untyped-def]
        ctx.given = timeline, run, rows, beside, parameters
        ctx.save_for_backward(states)
        output = None
        for tile, other in _two_tiles(states, beside, rows):
            with timeline.standing_for(len(states) / rows / 2):
                found = run(tile, other)
            if output is None:
                shape = () if beside is not None else (len(states), *found.shape[1:])
                output = found.new_empty(shape)
        return output

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        timeline, run, rows, beside, parameters = ctx.given
        (states,) = ctx.saved_tensors
        asked = ctx.needs_input_grad[4]
        of_states = torch.empty_like(states) if asked else None
        sums: list[Any] = [None] * len(parameters)
        for tile, other in _two_tiles(states, beside, rows):
            leaf = tile.detach().requires_grad_(asked)
            with timeline.standing_for(len(states) / rows / 2):
                with torch.enable_grad():
                    found = run(leaf, other)
                wanted = [leaf, *parameters] if asked else list(parameters)
                of_tile = found.new_empty(()).expand(found.shape)
                parts = list(torch.autograd.grad(found, wanted, of_tile, allow_unused=True))
                parts = parts[1:] if asked else parts
                sums = [added(before, more) for before, more in zip(sums, parts, strict=True)]
        return None, None, None, None, of_states, *sums


def _two_tiles(
    states: torch.Tensor, beside: torch.Tensor | None, rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Tiles of as many tokens as they have, which take no memory."""
    for _ in range(2):
        tile = states[:1].expand(rows, -1)
        yield tile, None if beside is None else beside[:1].expand(rows)


def _tiles(timeline: Timeline) -> Callable[..., Any]:
    def by_tiles(
        run: Any, rows: int, states: Any, parameters: Any, *, beside: Any = None
    ) -> torch.Tensor:
        found: torch.Tensor = _Tiles.apply(timeline, run, rows, beside, states, *parameters)
        return found

    return by_tiles


def checkpoint_away(function: Callable[..., Any], *args: Any) -> Any:
    """Recompute from inputs that are kept elsewhere: here nowhere, and come as new tensors."""

    def pack(kept: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
        return kept.shape, kept.dtype, kept.device

    def unpack(kept: tuple[torch.Size, torch.dtype, torch.device]) -> torch.Tensor:
        # a backward pass makes tensors on no device that was chosen around it
        shape, dtype, device = kept
        return torch.empty(shape, dtype=dtype, device=device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return checkpoint(function, *args, use_reentrant=False)
