"""Long samples, a tile of tokens at a time: MLPs, and the logits with the loss.

Nothing of a tile is kept; the backward pass computes it again (Arctic Long Sequence Training, arXiv
2506.13996, section 3). Gradients of weights leave the backward pass as gradients, once and whole,
so that every stage of ZeRO, tied weights and scaled losses work as they do without tiles.
DeepSpeed's own (runtime/sequence_parallel/ulysses_sp.py) make a backward pass for each tile: a tied
weight then has its gradient twice, and TiledFusedLogitsLoss leaves out of a weight's by what the
loss is multiplied. Legend: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_module
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.pytorch_utils import Conv1D

from dslm.errors import RecipeError, Where
from dslm.worker.data.packing import IGNORED
from dslm.worker.features import check_loss
from dslm.worker.layout.attention import without_adapters
from dslm.worker.layout.experts import is_mixture

LOSS_TILE = 2**24  # elements of the logits that are there at a time
_SMALLEST_TILE = 256  # tokens: fewer don't keep an accelerator at work
_LINEAR = (nn.Linear, Conv1D)
_FEWEST = 2  # linear layers of an MLP
# of a tile (n, H), and of what belongs to its tokens beside them (n,)
Run = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class Tiled(torch.autograd.Function):
    """A function of tokens, a tile at a time: its results in a row, or added up."""

    @staticmethod
    def forward(ctx, run, rows, beside, adds_up, states, *parameters):  # type: ignore[no-untyped-def]
        kind = states.device.type
        ctx.given = run, rows, beside, adds_up, parameters
        ctx.cast = kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        ctx.save_for_backward(states)
        output = total = None
        for place, tile, other in tiles_of(states, beside, rows):
            found = run(tile, other)
            if adds_up:
                total = found if total is None else total + found
                continue
            if output is None:
                output = found.new_empty((len(states), *found.shape[1:]))
            output[place] = found
        return total if adds_up else output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        run, rows, beside, adds_up, parameters = ctx.given
        kind, enabled, dtype = ctx.cast
        (states,) = ctx.saved_tensors
        asked = ctx.needs_input_grad[4]
        of_states = torch.empty_like(states) if asked else None
        sums: list[torch.Tensor | None] = [None] * len(parameters)
        for place, tile, other in tiles_of(states, beside, rows):
            leaf = tile.detach().requires_grad_(asked)
            with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
                found = run(leaf, other)
            wanted = [leaf, *parameters] if asked else list(parameters)
            of_tile = gradient if adds_up else gradient[place]
            parts = list(torch.autograd.grad(found, wanted, of_tile, allow_unused=True))
            if of_states is not None:
                of_states[place] = parts.pop(0)
            sums = [added(before, more) for before, more in zip(sums, parts, strict=True)]
        return None, None, None, None, of_states, *sums


def added(before: torch.Tensor | None, more: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient of a weight so far, and that of one more tile."""
    if before is None or more is None:
        return more if before is None else before
    return before.add_(more)


def tiles_of(
    states: torch.Tensor, beside: torch.Tensor | None, rows: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor | None]]:
    """Where each tile of tokens (N, H) stands, the tile, and what belongs to its tokens."""
    for start in range(0, len(states), rows):
        place = slice(start, start + rows)
        yield place, states[place], None if beside is None else beside[place]


def by_tiles(
    run: Run,
    rows: int,
    states: torch.Tensor,
    parameters: list[nn.Parameter],
    *,
    beside: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a function of tokens (N, H) on tiles of `rows` of them.

    Args:
        run: the function.
        rows: tokens of a tile.
        states: the tokens.
        parameters: trained ones that the function uses.
        beside: what belongs to each token (N,): then the results are added up.
    """
    if len(states) <= rows:
        return run(states, beside)
    found: torch.Tensor = Tiled.apply(run, rows, beside, beside is not None, states, *parameters)
    return found


def mlps_of(model: nn.Module) -> list[nn.Module]:
    """Return the MLPs of a model: known by their structure, and never one expert of many.

    One tensor goes in; inside are linear layers and activations, nothing that drops out (a tile
    that is computed again would drop others), and as many features come out as went in.
    """
    return [each for layer in _layers(model) for each in _mlps(layer)]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _mlps(module: nn.Module) -> Iterator[nn.Module]:
    if is_mixture(module):
        return
    if _is_mlp(module):
        yield module
        return
    for child in module.children():
        yield from _mlps(child)


def _is_mlp(module: nn.Module) -> bool:
    if type(module).__module__.startswith("peft.") or isinstance(module, nn.ModuleList):
        return False
    linear = [m for m in module.modules() if isinstance(m, _LINEAR)]
    inside = [m for m in module.modules() if not any(True for _ in m.children())]
    with_parameters = [m for m in module.modules() if m._parameters and any(
        p is not None for p in m._parameters.values()
    )]  # fmt: skip
    dropouts = [m for m in inside if isinstance(m, nn.Dropout)]
    activations = [m for m in inside if not isinstance(m, (*_LINEAR, nn.Dropout, nn.Identity))]
    return (
        len(linear) >= _FEWEST
        and all(isinstance(m, _LINEAR) for m in with_parameters)
        and bool(activations)
        and not any(m.p > 0 for m in dropouts)
        and _takes_one(module)
        and _features(linear[0])[0] == _features(linear[-1])[1]
    )


def _takes_one(module: nn.Module) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = inspect.signature(module.forward).parameters.values()
    return sum(each.kind in kinds for each in given) == 1


def _features(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """What goes in and comes out of a linear layer."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    return linear.nx, linear.nf


def tile_mlps(model: PreTrainedModel) -> None:
    """Compute the MLPs of a model a tile at a time, of as many tokens as it has hidden features.

    Raises:
        RecipeError: it has none that can be.
    """
    found = mlps_of(model)
    if not found:
        raise RecipeError(no_mlps(model), where=Where(key="model.tiled_mlp"),
                          hint="`--set model.tiled_mlp=false`")  # fmt: skip
    for module in found:
        _tile_mlp(module, rows_of_mlp(module))
        set_z3_leaf_module(module, True)  # its parameters come together, and stay for all tiles


def rows_of_mlp(module: nn.Module) -> int:
    """Return the tokens of a tile: as many as a token has features."""
    return _features(next(m for m in module.modules() if isinstance(m, _LINEAR)))[0]


def no_mlps(model: PreTrainedModel) -> str:
    """Say that a model has no MLPs for tiles."""
    kind = without_adapters(model).config.model_type
    return f"a model of type `{kind}` has no MLPs that can be computed in tiles"


def _tile_mlp(module: nn.Module, rows: int) -> None:
    whole = module.forward

    def run(tile: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        found: torch.Tensor = whole(tile[None])[0]
        return found

    def forward(states: torch.Tensor) -> torch.Tensor:
        flat = states.reshape(-1, states.shape[-1])
        trained = [p for p in module.parameters() if p.requires_grad]
        return by_tiles(run, rows, flat, trained).view(states.shape)

    module.forward = forward  # type: ignore[method-assign]


def rows_of_loss(vocabulary: int) -> int:
    """Return the tokens of a tile of logits."""
    return max(_SMALLEST_TILE, LOSS_TILE // vocabulary)


class _Targets:
    """What the tokens of a forward pass are to predict, from its start to its loss."""

    def __init__(self) -> None:
        self.wanted: torch.Tensor | None = None
        self.used = False

    def begin(self, settings: dict[str, Any]) -> None:
        """Note the labels of a pass, if it is given any."""
        labels, shifted = settings.get("labels"), settings.get("shift_labels")
        self.wanted, self.used = None, False
        if shifted is None and labels is not None:
            shifted = torch.nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED)
        self.wanted = None if shifted is None else shifted.reshape(-1)


def tile_loss(model: PreTrainedModel) -> None:
    """Compute the logits and the loss of a model a tile at a time, where the head is.

    What the head then gives isn't logits but the sum of the losses.

    Raises:
        RecipeError: the model has a loss of its own.
    """
    base = without_adapters(model)
    check_loss(base, "model.tiled_loss")
    head: Any = base.get_output_embeddings()
    rows = rows_of_loss(int(base.config.get_text_config().vocab_size))
    whole, targets = head.forward, _Targets()

    def run(tile: torch.Tensor, wanted: Any) -> torch.Tensor:
        scores = whole(tile[None])[0].float()  # (n, V)
        return cross_entropy(scores, wanted, ignore_index=IGNORED, reduction="sum")

    def forward(states: torch.Tensor) -> torch.Tensor:
        flat = states.reshape(-1, states.shape[-1])
        if targets.wanted is None or len(flat) != len(targets.wanted):
            logits: torch.Tensor = whole(states)
            return logits
        targets.used = True
        trained = [p for p in head.parameters() if p.requires_grad]
        return by_tiles(run, rows, flat, trained, beside=targets.wanted.to(flat.device))

    def loss(logits: torch.Tensor, labels: Any, vocab_size: int, **settings: Any) -> torch.Tensor:
        if not targets.used or targets.wanted is None:
            return ForCausalLMLoss(logits, labels, vocab_size, **settings)
        count = settings.get("num_items_in_batch")
        return logits / ((targets.wanted != IGNORED).sum() if count is None else count)

    def before(module: nn.Module, args: Any, settings: dict[str, Any]) -> None:
        targets.begin(settings)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        used, targets.wanted, targets.used = targets.used, None, False
        if used and isinstance(output, dict):  # there are no logits
            return type(output)(**{n: value for n, value in output.items() if n != "logits"})
        return output

    head.forward = forward
    base.loss_function = loss
    base.loss_in_tiles = True  # type: ignore[assignment]
    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after)


def has_loss_in_tiles(model: nn.Module) -> bool:
    """Return whether a model, or the one inside an engine, computes its loss in tiles."""
    return any(getattr(module, "loss_in_tiles", False) for module in model.modules())


def summed_in_tiles(
    model: nn.Module, batch: dict[str, Any], labels: torch.Tensor, shifted: torch.Tensor | None
) -> torch.Tensor | None:
    """Return a batch's sum of losses and number of tokens, float64; None: not without all logits.

    Args:
        model: an engine, or a model.
        batch: what the model is given beside labels.
        labels: (B, L).
        shifted: of ranks that share sequences, what each of their tokens is to predict.
    """
    if not has_loss_in_tiles(model):
        return None
    following = labels[:, 1:] if shifted is None else shifted
    count = (following != IGNORED).sum()
    more = {} if shifted is None else {"shift_labels": shifted}
    mean = model(**batch, labels=labels, **more).loss
    return torch.stack([mean.double().nan_to_num() * count, count.double()])
