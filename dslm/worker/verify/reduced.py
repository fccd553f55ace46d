"""A recipe's model cut to few layers of each kind and small widths, with random weights on disk.

What makes a layout go wrong is kept: ties, experts, shared modules, the kinds of layers, adapters.
Widths are cut by the names that transformers' configs use, and put back where a model can't be
built with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_model
from transformers import AutoConfig, set_seed

from dslm.errors import RecipeError, Where
from dslm.recipe.schema import Recipe
from dslm.worker.model import scratch_config

MOST_PARAMETERS = 4_000_000  # beside the tables of the vocabulary
_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "encoder_layers",
           "decoder_layers", "n_layers")  # fmt: skip
_FEWEST = 2
_WIDTH = 64
_DROPOUTS = ("dropout", "pdrop", "drop_rate", "_drop")
_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")
_SMALL = {
    "hidden_size": _WIDTH, "n_embd": _WIDTH, "d_model": _WIDTH, "intermediate_size": 2 * _WIDTH,
    "d_ff": 2 * _WIDTH, "n_inner": 2 * _WIDTH, "ffn_dim": 2 * _WIDTH,
    "encoder_ffn_dim": 2 * _WIDTH, "decoder_ffn_dim": 2 * _WIDTH,
    "moe_intermediate_size": _WIDTH // 2, "shared_expert_intermediate_size": _WIDTH // 2,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "head_dim": _WIDTH // 4, "d_kv": _WIDTH // 4,
    "embedding_size": _WIDTH, "word_embed_proj_dim": _WIDTH,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
}  # fmt: skip


def reduced_config(recipe: Recipe, tokenizer: Any, **settings: Any) -> Any:
    """Return the config of the reduced model, without dropout.

    Raises:
        RecipeError: the model's own config is not known here.
    """
    full = _config(recipe, tokenizer, **settings)
    for changes in _attempts(full):
        values = {**full.to_dict(), **changes}
        values.pop("model_type", None)
        try:
            config = type(full)(**values)
            with torch.device("meta"):
                model = _factory(recipe).from_config(config)
        except Exception:  # noqa: BLE001, S112 - models refuse widths in any way: the next is tried
            continue
        if _beside_tables(model) <= MOST_PARAMETERS or not changes:
            return config
    return full


def write_reduced(recipe: Recipe, config: Any, auto_class: str, folder: str) -> None:
    """Write the reduced model with random weights, the same for every reader."""
    set_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    model = getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
    # every rank writes a folder of its own, since hosts may share none; `save_pretrained` would
    # write on rank 0 alone
    model.config.architectures = [type(model).__name__]
    model.config.to_json_file(Path(folder, "config.json"), use_diff=False)
    save_model(model, str(Path(folder, "model.safetensors")), metadata={"format": "pt"})


def without_dropout(config: Any) -> dict[str, float]:
    """Set every dropout of a config to 0; what they were, where they weren't."""
    had = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, float) and value > 0 and any(part in name for part in _DROPOUTS)
    }
    for name in had:
        setattr(config, name, 0.0)
    return had


def _config(recipe: Recipe, tokenizer: Any, **settings: Any) -> Any:
    if recipe.model.init == "scratch":
        return scratch_config(recipe, tokenizer, **settings)
    try:
        return AutoConfig.from_pretrained(
            recipe.model.name,
            revision=recipe.model.revision,
            trust_remote_code=recipe.model.trust_remote_code,
            **settings,
        )
    except (OSError, ValueError) as failure:
        raise RecipeError(
            f"the config of `{recipe.model.name}` can't be read: {str(failure).splitlines()[0]}",
            where=Where(key="model.name"),
        ) from failure


def _factory(recipe: Recipe) -> Any:
    from dslm.worker.tasks import task_of

    return getattr(transformers, task_of(recipe).auto_class)


def _attempts(full: Any) -> Iterator[dict[str, Any]]:
    """Changes of a config: fewer layers and smaller widths, fewer layers, none."""
    layers = _fewer_layers(full)
    heads = _kept_ratio(full)
    widths = {name: value for name, value in _SMALL.items() if _larger(full, name, value)}
    if widths:
        yield {**layers, **widths, **heads}
    if layers:
        yield layers
    yield {}


def _larger(full: Any, name: str, value: int) -> bool:
    own = getattr(full, name, None)
    return isinstance(own, int) and not isinstance(own, bool) and own > value


def _fewer_layers(full: Any) -> dict[str, Any]:
    """Two layers, or as many as there are kinds, the first of each."""
    kinds = getattr(full, "layer_types", None)
    keep = _FEWEST
    if isinstance(kinds, list) and kinds:
        first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        keep = max(_FEWEST, max(first) + 1)
    changes: dict[str, Any] = {name: keep for name in _LAYERS if _larger(full, name, keep)}
    for name in _OF_LAYERS:
        values = getattr(full, name, None)
        if changes and isinstance(values, list):
            changes[name] = values[:keep]
    return changes


def _kept_ratio(full: Any) -> dict[str, int]:
    """Key-value heads in about the same ratio to the heads."""
    heads, shared = (getattr(full, n, None) for n in ("num_attention_heads", "num_key_value_heads"))
    if not isinstance(heads, int) or not isinstance(shared, int) or heads <= 4:
        return {}
    return {"num_key_value_heads": 4 if shared == heads else 2 if shared > 1 else 1}


def _beside_tables(model: Any) -> int:
    """Parameters beside the tables of the vocabulary."""
    tables = {
        id(table.weight): table.weight.numel()
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
        if isinstance(getattr(table, "weight", None), torch.Tensor)
    }
    return sum(p.numel() for p in model.parameters()) - sum(tables.values())
