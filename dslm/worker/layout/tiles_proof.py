"""Prove on a small model of a kind that tiles change nothing of its loss and its gradients.

An MLP may do more than its structure shows, and a model may change its logits behind the head: no
config says so. So both are computed, with tiles and without. Knows no recipe: a config comes in,
and what can't be in tiles goes out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from dslm.errors import RecipeError
from dslm.worker.layout import tiles
from dslm.worker.layout.apart import MOST_TRIES, VOCABULARY, drawn, small_configs
from dslm.worker.layout.tiles import tile_loss, tile_mlps

MLP, LOSS = "model.tiled_mlp", "model.tiled_loss"
_TILE = 5  # tokens
_LENGTH = 16
_OFF = 1e-4  # of the largest gradient


def not_in_tiles(config: Any, auto_class: str, asked: tuple[str, ...]) -> dict[str, str]:
    """Return by key of what was asked for why a model can't be computed so.

    Args:
        config: of the model, as large as it is.
        auto_class: transformers' class of its task.
        asked: the keys.
    """
    ways: dict[str, Callable[[Any], None]] = {MLP: tile_mlps, LOSS: tile_loss}
    with torch.random.fork_rng(devices=[]):
        return {
            key: why
            for key, tile in ways.items()
            if key in asked and (why := _differs(config, auto_class, tile))
        }


def _differs(config: Any, auto_class: str, tile: Callable[[Any], None]) -> str:
    kind = config.model_type
    for small in itertools.islice(small_configs(config, auto_class), MOST_TRIES):
        try:
            model = drawn(small, auto_class)
            plain = _learnt(model)
        except Exception:  # noqa: BLE001, S112 - a model's code can fail in any way: the next
            continue
        try:
            with _small_tiles():
                tile(model)
                found = _learnt(model)
        except RecipeError as failure:
            return failure.message
        except Exception as failure:  # noqa: BLE001 - a model's code can fail in any way
            return f"a model of type `{kind}` can't be computed in tiles: {failure}"[:300]
        same = all(
            torch.allclose(mine, true, rtol=0, atol=_OFF * float(true.abs().max()))
            for mine, true in zip(found, plain, strict=True)
        )
        return "" if same else f"a model of type `{kind}` gives another loss in tiles of tokens"
    return f"no small model of type `{kind}` could be tried with tiles of tokens"


def _small_tiles() -> Any:
    return mock.patch.multiple(tiles, rows_of_loss=lambda _: _TILE, rows_of_mlp=lambda _: _TILE)


def _learnt(model: Any) -> list[torch.Tensor]:
    """The loss of a few tokens and the gradients of all weights."""
    ids = torch.randint(1, VOCABULARY - 1, (2, _LENGTH), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
