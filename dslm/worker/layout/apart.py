"""Measure whether a model keeps the documents of a pack apart, on a small one of its kind.

Masks that a model makes itself, convolutions and recurrences let one document see another, and no
config says so. So the first document of a pack is changed, and nothing may move in what the model
says of the second. Knows no recipe: a config comes in, and what was seen goes out.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import transformers

from dslm.recipe.packs import BY_LENGTHS, BY_MASK
from dslm.worker.layout.attention import DOCUMENTS, attends_plainly, watch
from dslm.worker.layout.ranks import Layout
from dslm.worker.model_config import set_cache
from dslm.worker.verify.reduced import cuts

_MOST_PARAMETERS = 250_000_000  # two layers as wide as they are, where a narrow one can't be made
_FEW = {"num_experts_per_tok": 2, "rotary_dim": 16, "mamba_n_heads": 16, "mamba_d_head": 8}
MOST_TRIES = 4
_FIRST, _LENGTH = 9, 24  # tokens of the first document, and of both
VOCABULARY = 128
_NOISE = 0.05  # added to every parameter: what is zero at first hides what it multiplies
_LEAK = 1e-4  # of how far the changed document's own logits move
_MASKED = "AutoModelForMaskedLM"


def kept_apart(config: Any, auto_class: str) -> dict[str, bool]:
    """Return by each way to tell a model where documents lie whether that keeps them apart.

    Args:
        config: of the model, as large as it is.
        auto_class: transformers' class of its task.

    Returns:
        `mask` for transformers' own way; `lengths` for attention within documents, where the model
        can use it. Empty where no small model of the kind can be built or run here.
    """
    with torch.random.fork_rng(devices=[]):
        for small in itertools.islice(small_configs(config, auto_class), MOST_TRIES):
            try:
                return _measured(small, auto_class)
            except Exception:  # noqa: BLE001, S112 - a model's code can fail in any way: the next
                continue
    return {}


def small_configs(full: Any, auto_class: str) -> Iterator[Any]:
    """Configs of small models of the same kind, the smallest first."""
    factory = _factory(auto_class)
    few = _few_of(full)
    for cut in cuts(full, factory, Layout(world_size=1, rank=0)):
        for changes in (few, {}):
            config = copy.deepcopy(cut)
            for name, value in changes.items():
                with suppress(AttributeError, NotImplementedError, ValueError):
                    setattr(config, name, value)
            if (expand := getattr(config, "expand", None)) and getattr(config, "num_heads", None):
                config.num_heads = int(expand * config.hidden_size) // config.head_dim  # of Mamba-2
            try:
                with torch.device("meta"):
                    model = factory.from_config(config)
            except Exception:  # noqa: BLE001, S112 - models refuse sizes in any way: the next
                continue
            if sum(p.numel() for p in model.parameters()) <= _MOST_PARAMETERS:
                yield config


def _few_of(full: Any) -> dict[str, Any]:
    """A small vocabulary with its special tokens, and what goes with small widths."""
    found: dict[str, Any] = {"vocab_size": VOCABULARY}
    found |= {name: most for name, most in _FEW.items() if (getattr(full, name, 0) or 0) > most}
    for name, value in full.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            found[name] = 0
    return found


def _factory(auto_class: str) -> Any:
    return getattr(transformers, auto_class)


def drawn(config: Any, auto_class: str) -> Any:
    """A model of random weights, none of them zero, that drops nothing out."""
    torch.manual_seed(0)
    set_cache(config, on=False)
    model = _factory(auto_class).from_config(config, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(_NOISE * torch.randn_like(parameter))
    return model


def _measured(config: Any, auto_class: str) -> dict[str, bool]:
    model = drawn(config, auto_class)
    if auto_class == _MASKED:
        return {BY_MASK: _takes_pairs(model) and _is_apart(model, masked=True)}
    found = {BY_MASK: _is_apart(model, masked=False)}
    if attends_plainly(model):
        model.set_attn_implementation(DOCUMENTS)
        watch(model)
        found[BY_LENGTHS] = _is_apart(model, masked=False)
    return found


def _takes_pairs(model: Any) -> bool:
    """Return whether a masked model that works takes a mask of pairs of tokens (B, 1, L, L)."""
    ids = torch.full((2, _LENGTH), 5)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    try:
        _logits(model, ids, masked=True)
    except Exception:  # noqa: BLE001 - a model's code can fail in any way
        return False
    return True


def _is_apart(model: Any, *, masked: bool) -> bool:
    """Return whether the second document's logits stay where they are when the first changes.

    Raises:
        ValueError: the model says nothing that can be compared.
    """
    highest = min(VOCABULARY, int(model.config.get_text_config().vocab_size))
    ids = torch.randint(5, highest, (2, _LENGTH))
    others = ids.clone()
    others[0, :_FIRST] = torch.randint(5, highest, (_FIRST,))
    before, after = (_logits(model, each, masked=masked) for each in (ids, others))
    moved = (before - after).abs()[0].amax(-1)  # (L,)
    own, other = moved[:_FIRST].max(), moved[_FIRST:].max()
    if not torch.isfinite(moved).all() or own == 0:
        raise ValueError("nothing can be compared")
    return bool(other <= _LEAK * own)


def _logits(model: Any, ids: torch.Tensor, *, masked: bool) -> torch.Tensor:
    """The logits (2, L, V) of a sample of two documents and of one of a single one."""
    positions = torch.arange(_LENGTH).repeat(2, 1)
    positions[0, _FIRST:] -= _FIRST
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "position_ids": positions}
    if masked:
        documents = (positions == 0).cumsum(1)
        mask = (documents[:, :, None] == documents[:, None, :])[:, None]
        if getattr(model.config, "_attn_implementation", "eager") == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        inputs |= {"attention_mask": mask, "token_type_ids": torch.zeros_like(positions)}
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found
