"""A recipe's model cut to few layers of each kind and small widths, with random weights on disk.

What makes a layout go wrong is kept: ties, experts, shared modules, the kinds of layers, adapters,
heads that ranks share evenly. Widths are cut by the names that transformers' configs use, in the
config and in those inside it; a cut is taken when the model can be built and run with it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_model
from torch import nn
from transformers import AutoConfig, PretrainedConfig, set_seed

from dslm.errors import RecipeError, Where
from dslm.files import expanded
from dslm.recipe.preferences import COMPARING
from dslm.recipe.schema import Recipe
from dslm.worker.adapters import config_in
from dslm.worker.layout.ranks import Layout
from dslm.worker.model import scratch_config
from dslm.worker.trace.layers import Layer, layers_of

MOST_PARAMETERS = (
    4_000_000  # beside the tables of the vocabulary, from which a smaller cut is tried
)
_AFFORDABLE = 100_000_000  # parameters in all, beyond which a verification takes too long
_FEWEST, _MOST = 2, 16  # layers of a stack
_WIDTH, _HEADS, _EXPERTS, _WORDS = 64, 4, 4, 8192
_DROPOUTS = ("dropout", "pdrop", "drop_rate", "_drop")
_ROUTER = ("aux_loss_coef", "aux_loss_alpha")  # of a loss that depends on what a micro batch holds
_INNER = ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim",
          "mlp_hidden_size", "ffn_hidden_size", "shared_intermediate_size")  # fmt: skip
_OF_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim")
_OF_HIDDEN = ("attention_hidden_size",)  # which are so many times the hidden size
_OF_HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads",
             "decoder_attention_heads", "n_heads")  # fmt: skip
_SHARED_HEADS = ("num_key_value_heads", "num_kv_heads")
_HEAD = ("head_dim", "d_kv")
_LATENT = ("q_lora_rank", "kv_lora_rank")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts")
_LAYER_WORDS = ("layer", "depth", "block")  # in the name of a number of layers
_TOKENS = 8  # of the sample that a cut is tried with

_Changes = Mapping[int, Mapping[str, Any]]  # of the entries of a config, by its identity


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """The config of a reduced model, and what was taken away from the model's own."""

    config: Any
    words: int | None = None  # that it has, where it has fewer
    had_dropout: bool = False
    had_router_loss: bool = False


def reduce(recipe: Recipe, tokenizer: Any, layout: Layout, **settings: Any) -> Reduced:
    """Cut a recipe's model, and take away what makes its gradient depend on chance or on layout.

    Raises:
        RecipeError: as `reduced_config`.
    """
    full = full_config(recipe, tokenizer, **settings)
    config = reduced_config(recipe, tokenizer, layout, **settings)
    words = words_of(config)
    fewer = words is not None and words != words_of(full)
    pad = getattr(tokenizer, "pad_token_id", None)
    if fewer and pad is not None and config.pad_token_id is None:
        config.pad_token_id = pad % words  # classifiers look for the last token
    router = zeroed(config, _ROUTER)
    asked = [bool(getattr(each, "output_router_logits", False)) for each in _configs(config)]
    return Reduced(
        config=config,
        words=words if fewer else None,
        had_dropout=bool(zeroed(config, _DROPOUTS)) or bool(recipe.lora and recipe.lora.dropout),
        had_router_loss=bool(router) and (any(asked) or recipe.task in COMPARING),
    )


def words_of(config: Any) -> int | None:
    """How many words a model has; None where it has none."""
    return _number(config.get_text_config(), "vocab_size")


def reduced_config(recipe: Recipe, tokenizer: Any, layout: Layout, **settings: Any) -> Any:
    """Return the config of the reduced model.

    Raises:
        RecipeError: the model's own config is not known here, or the model can't be cut so far that
            it can be verified.
    """
    full = full_config(recipe, tokenizer, **settings)
    factory = _factory(recipe)
    smallest: tuple[int, Any] | None = None
    for config in cuts(full, factory, layout):
        model = _built(factory, config, "meta")
        if model is None:
            continue
        size = sum(p.numel() for p in model.parameters())
        if size > _AFFORDABLE or not _runs(_built(factory, config, "cpu")):
            continue
        if size - _of_tables(model) <= MOST_PARAMETERS:
            return config
        if smallest is None or size < smallest[0]:
            smallest = size, config
    if smallest is None:
        raise RecipeError(
            f"a model of type `{getattr(full, 'model_type', '')}` can't be cut to a size that is "
            "verified in minutes",
            where=Where(key="model"),
            hint="verify the layout with another model of this kind: `--set model.architecture=…`",
        )
    return smallest[1]


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


def write_adapters(recipe: Recipe, auto_class: str, folder: str) -> None:
    """Write adapters of the reduced model, where the recipe goes on with some of its model."""
    from peft import get_peft_model

    if recipe.lora is None or recipe.lora.adapter is None:
        return
    model = getattr(transformers, auto_class).from_pretrained(folder)
    config = config_in(expanded(recipe.lora.adapter))
    config.layers_to_transform = None  # there are fewer
    torch.manual_seed(recipe.seed)
    made = get_peft_model(model, config)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    made.save_pretrained(Path(folder, "adapters"))


def zeroed(config: Any, names: Sequence[str]) -> dict[str, float]:
    """Set the numbers of a config whose name has one of these parts to 0; what they were."""
    had: dict[str, float] = {}
    for each in _configs(config):
        for name, value in vars(each).items():
            if any(part in name for part in names) and isinstance(value, float) and value > 0:
                had[name] = value
                setattr(each, name, 0.0)
    return had


def full_config(recipe: Recipe, tokenizer: Any, **settings: Any) -> Any:
    """Return the config of a recipe's model as it is.

    Raises:
        RecipeError: it is not known here.
    """
    model = recipe.model
    if model.init == "scratch":
        return scratch_config(recipe, tokenizer, **settings)
    try:
        return AutoConfig.from_pretrained(
            model.name,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            **settings,
        )
    except (OSError, ValueError) as failure:
        if model.architecture and not Path(str(model.name)).is_dir():
            return scratch_config(recipe, tokenizer, **settings)  # no network: a preset says it all
        raise RecipeError(
            f"the config of `{model.name}` can't be read: {str(failure).splitlines()[0]}",
            where=Where(key="model.name"),
        ) from failure


def _factory(recipe: Recipe) -> Any:
    from dslm.worker.tasks import task_of

    return getattr(transformers, task_of(recipe).auto_class)


def _built(factory: Any, config: Any, device: str) -> nn.Module | None:
    try:
        with torch.device(device):
            built: nn.Module = factory.from_config(config, dtype=torch.float32)
    except Exception:  # noqa: BLE001 - models refuse sizes in any way: the next are tried
        return None
    return built


def _runs(model: nn.Module | None) -> bool:
    """Whether a forward pass of a few tokens goes through."""
    if model is None:
        return False
    config: Any = model.config
    tokens = torch.arange(1, 1 + _TOKENS)[None]
    inputs: dict[str, torch.Tensor] = {}
    if getattr(model, "main_input_name", "input_ids") == "input_ids":
        inputs["input_ids"] = tokens
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = tokens
    elif isinstance(getattr(config, "image_size", None), int):
        size = config.image_size
        inputs["pixel_values"] = torch.zeros(1, config.num_channels, size, size)
    else:
        return True
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def cuts(full: Any, factory: Any, layout: Layout) -> Iterator[Any]:
    """Cuts of a config, the smallest first: each with fewer layers of each kind.

    Args:
        full: the config.
        factory: transformers' class that builds a model of it.
        layout: whose ranks share heads and experts evenly.
    """
    fewer = _fewer_layers(full, _built(factory, full, "meta"))
    shared = max(layout.tensor, layout.sequence)
    heads = max(_HEADS, 2 * shared)  # that the ranks share evenly

    def small(each: Any) -> dict[str, Any]:
        width = _WIDTH * heads // _HEADS
        return {**_widths(each, width, heads, shared), **_smaller(each, _HEAD, width // heads)}

    def own_heads(each: Any) -> dict[str, Any]:
        return _widths(each, heads * _head_of(each), heads, shared)

    def few_experts(each: Any) -> dict[str, Any]:
        return _experts(each, layout.expert)

    for widths in ((small, few_experts), (own_heads, few_experts), (few_experts,), ()):
        for cuts in ((*widths, _few_words), widths):
            yield _changed(full, partial(_together, cuts, fewer))
    yield full


def _few_words(each: Any) -> dict[str, Any]:
    """A smaller vocabulary, in which every word that a config names has a place."""
    words = _number(each, "vocab_size")
    if words is None or words <= _WORDS:
        return {}
    named = {
        name: value % _WORDS
        for name, value in vars(each).items()
        if name.endswith("token_id") and isinstance(value, int) and value >= _WORDS
    }
    lists = {
        name: [word % _WORDS for word in value]
        for name, value in vars(each).items()
        if name.endswith("token_id") and isinstance(value, list)
    }
    return {"vocab_size": _WORDS, **named, **lists}


def _together(
    cuts: Sequence[Callable[[Any], dict[str, Any]]], fewer: _Changes, each: Any
) -> dict[str, Any]:
    """All changes of one config."""
    changes = dict(fewer.get(id(each), {}))
    for cut in cuts:
        changes |= cut(each)
    return changes


def _changed(full: Any, changes_of: Callable[[Any], Mapping[str, Any]]) -> Any:
    """A copy of a config with changes in it and in the configs inside it."""
    made = copy.deepcopy(full)
    for own, each in zip(_configs(full), _configs(made), strict=True):
        for name, value in changes_of(own).items():
            with suppress(AttributeError):  # it follows from others
                setattr(each, name, value)
    return made


def _configs(config: Any) -> Iterator[Any]:
    """A config and those inside it, such as that of the text in a model of text and images."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _configs(value)


def _smaller(each: Any, names: Sequence[str], value: int) -> dict[str, int]:
    """Those of a config's entries that are larger, with this value."""
    return {name: value for name in names if (own := _number(each, name)) and own > value}


def _number(each: Any, name: str) -> int | None:
    try:
        own = getattr(each, name, None)
    except RuntimeError:  # transformers' word for what differs between layers
        return None
    return own if isinstance(own, int) and not isinstance(own, bool) else None


def _widths(each: Any, width: int, heads: int, shared: int) -> dict[str, int]:
    """Smaller hidden and inner sizes, fewer heads, key-value heads in about the same ratio."""
    hidden = next((size for name in _HIDDEN if (size := _number(each, name))), width)
    wider = {name: own // hidden for name in _OF_HIDDEN if (own := _number(each, name))}
    return {
        **_smaller(each, _HIDDEN, width),
        **{name: times * min(width, hidden) for name, times in wider.items()},
        **_smaller(each, _INNER, 2 * width),
        **_smaller(each, _OF_EXPERTS, width // 2),
        **_smaller(each, _LATENT, _WIDTH),
        **_smaller(each, _OF_HEADS, heads),
        **_key_values(each, heads, shared),
    }


def _key_values(each: Any, heads: int, shared: int) -> dict[str, int]:
    full = next((n for name in _OF_HEADS if (n := _number(each, name))), None)
    found: dict[str, int] = {}
    for name in _SHARED_HEADS:
        own = _number(each, name)
        if own is None or full is None or full <= heads:
            continue
        few = shared if not own % shared and shared > 1 else 2
        found[name] = heads if own == full else min(own, few)
    return found


def _experts(each: Any, shared: int) -> dict[str, int]:
    return {
        **_smaller(each, _EXPERT_COUNTS, -(-_EXPERTS // shared) * shared),
        **_smaller(each, _CHOSEN, 2),
        **_smaller(each, ("n_group",), 2),
        **_smaller(each, ("topk_group",), 1),
    }


def _head_of(each: Any) -> int:
    """The size of a head, as the config says it or as it follows."""
    said = next((n for name in _HEAD if (n := _number(each, name))), None)
    wide = next((n for name in _HIDDEN if (n := _number(each, name))), None)
    heads = next((n for name in _OF_HEADS if (n := _number(each, name))), None)
    if said is not None:
        return said
    return wide // heads if wide and heads else _WIDTH // _HEADS


def _fewer_layers(full: Any, model: nn.Module | None) -> _Changes:
    """Entries that say how many layers there are, or something of each, by config."""
    keep = dict(_kept(model)) if model is not None else {}
    found: dict[int, dict[str, Any]] = {}
    for each in _configs(full):
        changes = found.setdefault(id(each), {})
        for name, value in vars(each).items():
            if isinstance(value, int) and not isinstance(value, bool):
                few = keep.get(value)
                if few is not None and any(word in name for word in _LAYER_WORDS):
                    changes[name] = few
            elif isinstance(value, list | tuple | str) and len(value) in keep and len(value) > 1:
                few = keep[len(value)]
                if not isinstance(value, str) or "pattern" in name:
                    changes[name] = value[:few]
    return found


def _kept(model: nn.Module) -> Iterator[tuple[int, int]]:
    """How many layers of each stack are kept, by how many it has, where that is fewer.

    So many that there is one of each kind, and two of those that use the same module.
    """
    stacks: dict[int, list[Layer]] = {}
    for layer in layers_of(model):
        stacks.setdefault(layer.stack, []).append(layer)
    few: dict[int, int] = {}
    for layers in stacks.values():
        kinds, users = set[int](), Counter[int]()
        keep = _FEWEST
        for number, layer in enumerate(layers, 1):
            own = {id(p) for p in layer.module.parameters()}
            second = any(users[each] == 1 for each in own)
            if number <= _MOST and (layer.kind not in kinds or second):
                keep = max(keep, number)
            kinds.add(layer.kind)
            users.update(own)
        few[len(layers)] = max(few.get(len(layers), 0), keep)
    yield from ((count, keep) for count, keep in few.items() if keep < count)


def _of_tables(model: Any) -> int:
    """Parameters of the tables of the vocabulary."""
    tables = {
        id(table.weight): table.weight.numel()
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
        if isinstance(getattr(table, "weight", None), torch.Tensor)
    }
    return sum(tables.values())
