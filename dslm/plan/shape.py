"""The shape of a model: its sizes and exact parameter count, from the architecture numbers alone.

What comes in is a mapping as a Hugging Face config.json has it (`model_type` and the sizes under
their own names); what goes out knows nothing of transformers. The counts are held equal to what
transformers builds on the meta device in tests/plan/test_shape.py.

Legend: V vocabulary, H hidden size, I intermediate size, P positions, A heads × head size,
K key-value heads × head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dslm.errors import RecipeError, Where


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a transformer; `parameters` counts tied weights once."""

    model_type: str
    parameters: int
    layer_parameters: int  # of one (decoder) layer
    embedding_parameters: int  # looked up, not multiplied; a tied head's matrix counts here
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int | None  # longest sequence; None: no limit
    gated_mlp: bool  # two matrices go up (SwiGLU), not one
    tied_head: bool
    norms_per_layer: int  # of width `hidden_size`
    qk_norm: bool = False
    experts: int = 0  # of a layer, each with an MLP of `intermediate_size`; 0: one dense MLP
    experts_per_token: int = 1
    sliding_window: int | None = None
    dropout: bool = False
    encoder_layers: int = 0  # of an encoder-decoder, beside `layers`
    patches: int = 0  # of an image
    exact: bool = True  # False: an unknown model_type, counted as a Llama would be
    guessed: tuple[str, ...] = ()  # what was assumed of it

    @property
    def attention_width(self) -> int:
        """Heads × head size, A."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Key-value heads × head size, K."""
        return self.kv_heads * self.head_dim

    @property
    def matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with, the head's matrix included."""
        head = self.vocab_size * self.hidden_size if self.tied_head else 0
        idle = max(0, self.experts - self.experts_per_token) * self.layers
        idle *= 3 * self.hidden_size * self.intermediate_size
        return self.parameters - self.embedding_parameters + head - idle


class _Config:
    """Architecture numbers by name, with the family's defaults as transformers has them."""

    def __init__(self, values: Mapping[str, Any], aliases: Mapping[str, str], task: str) -> None:
        self._values = values
        self._aliases = aliases
        self.classifies = task == "classify"  # a small head instead of one over the vocabulary

    def number(self, key: str, default: int | None = None) -> int:
        for name in (key, self._aliases.get(key, key)):
            value = self._values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                if value <= 0 or value != int(value):
                    raise RecipeError(
                        f"`{name}` must be a positive whole number, not {value}",
                        where=Where(key=f"model.architecture.{name}"),
                    )
                return int(value)
        if default is None:
            raise RecipeError(
                f"the architecture lacks `{self._aliases.get(key, key)}`",
                where=Where(key="model.architecture"),
                hint="give the sizes as the model's config.json has them",
            )
        return default

    def has(self, key: str) -> bool:
        """Whether the size is given."""
        return isinstance(self._values.get(self._aliases.get(key, key)), int | float)

    def renamed(self, names: Mapping[str, tuple[str, ...]]) -> _Config:
        """With the sizes that go by other names under their usual ones."""
        found = dict(self._values)
        for key, others in names.items():
            given = next((self._values[name] for name in others if self._values.get(name)), None)
            if found.get(key) is None and given is not None:
                found[key] = given
        return self._with(found, {})

    def completed(self, values: Mapping[str, int]) -> _Config:
        """With further sizes."""
        return self._with({**self._values, **values}, self._aliases)

    def _with(self, values: Mapping[str, Any], aliases: Mapping[str, str]) -> _Config:
        return _Config(values, aliases, "classify" if self.classifies else "")

    def drops(self, *keys: str) -> bool:
        """Whether any of these rates of dropout is set; the families' defaults are a tenth."""
        return any(self._values.get(key, 0.1) for key in keys)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        return default if value is None else bool(value)


def shape_of(architecture: Mapping[str, Any], task: str = "pretrain") -> ModelShape:
    """The shape of a model.

    Args:
        architecture: `model_type` and sizes as in a config.json.
        task: the recipe's; it decides which head the model has.

    Raises:
        RecipeError: a size is missing or no positive whole number.
    """
    model_type = str(architecture.get("model_type", ""))
    nested = architecture.get("text_config")
    if model_type not in _FAMILIES and isinstance(nested, Mapping):
        return shape_of(nested, task)
    build, aliases = _FAMILIES.get(model_type, (_unknown, {}))
    return build(model_type, _Config(architecture, aliases, task))


def _llama(model_type: str, config: _Config) -> ModelShape:
    """Llama and its kin: RMSNorm, grouped-query attention, rotary positions, gated MLPs."""
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads = config.number("num_attention_heads")
    kv_heads = config.number("num_key_value_heads", heads)
    head_dim = config.number("head_dim", _HEAD_DIM.get(model_type) or hidden // heads)
    experts, chosen, own = _EXPERTS.get(model_type, (0, 1, "intermediate_size"))
    if experts:
        experts = config.number("num_local_experts", config.number("num_experts", experts))
        chosen = config.number("num_experts_per_tok", chosen)
    inner, vocab = config.number(own), config.number("vocab_size")
    width, kv_width = heads * head_dim, kv_heads * head_dim
    norms = 4 if model_type == "gemma3_text" else 2
    mlp = 3 * hidden * inner * max(1, experts) + hidden * experts  # the router has a row an expert
    layer = 2 * hidden * width + 2 * hidden * kv_width + mlp + norms * hidden
    if model_type in ("qwen3", "qwen3_moe", "gemma3_text"):
        layer += 2 * head_dim  # one norm over each head, shared by all heads
    if model_type == "olmo2":
        layer += width + kv_width  # one norm over all heads
    if config.flag("attention_bias", default=False):
        layer += 2 * kv_width + width + hidden
    if model_type == "qwen2":
        layer += 2 * kv_width + width
    if config.flag("mlp_bias", default=False):
        layer += 2 * inner + hidden
    embedding = vocab * hidden
    head, tied = _head(config, embedding, hidden, tied=model_type == "gemma3_text")
    sliding = model_type in ("mistral", "mixtral", "gemma3_text")
    window = config.number("sliding_window", 0) if sliding else 0
    return ModelShape(
        model_type=model_type,
        parameters=embedding + head + layers * layer + hidden,
        layer_parameters=layer,
        embedding_parameters=embedding,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_positions=config.number("max_position_embeddings", 2048),
        gated_mlp=True,
        tied_head=tied,
        norms_per_layer=norms,
        qk_norm=model_type in ("qwen3", "qwen3_moe", "gemma3_text", "olmo2"),
        experts=experts,
        experts_per_token=chosen,
        sliding_window=window or None,
    )


# transformers' defaults: experts of a layer, those of a token, where their width stands
_EXPERTS = {
    "mixtral": (8, 2, "intermediate_size"),
    "qwen3_moe": (128, 8, "moe_intermediate_size"),
}
# and where head size isn't hidden size / heads
_HEAD_DIM = {"qwen3": 128, "gemma3_text": 256}


def _gpt(model_type: str, config: _Config) -> ModelShape:
    """GPT-2 and GPT-NeoX (Pythia): LayerNorm and biases everywhere, an MLP of two matrices."""
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, vocab = config.number("num_attention_heads"), config.number("vocab_size")
    inner = config.number("intermediate_size", 4 * hidden)
    positions = config.number("max_position_embeddings", 1024)
    learned = model_type == "gpt2"
    layer = _encoder_layer(hidden, inner)
    embedding = vocab * hidden + (positions * hidden if learned else 0)
    head, tied = _head(config, vocab * hidden, hidden, tied=learned)
    return ModelShape(
        model_type=model_type,
        parameters=embedding + head + layers * layer + 2 * hidden,
        layer_parameters=layer,
        embedding_parameters=embedding,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_positions=positions,
        gated_mlp=False,
        tied_head=tied,
        norms_per_layer=2,
        dropout=learned and config.drops("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    )


def _bert(model_type: str, config: _Config) -> ModelShape:
    """BERT and RoBERTa with their head for masked language modelling."""
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, inner = config.number("num_attention_heads"), config.number("intermediate_size")
    vocab, positions = config.number("vocab_size"), config.number("max_position_embeddings", 512)
    layer = _encoder_layer(hidden, inner)
    embedding = (vocab + positions + config.number("type_vocab_size", 2)) * hidden
    head = hidden * hidden + hidden  # dense; for masks then norm and bias of the tied decoder
    labels = config.number("num_labels", 2)
    head += (hidden + 1) * labels if config.classifies else 2 * hidden + vocab
    # RoBERTa's positions start after the padding index (transformers' create_position_ids)
    usable = positions - 2 if model_type == "roberta" else positions
    return ModelShape(
        model_type=model_type,
        parameters=embedding + 2 * hidden + layers * layer + head,
        layer_parameters=layer,
        embedding_parameters=embedding,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_positions=usable,
        gated_mlp=False,
        tied_head=not config.classifies,
        norms_per_layer=2,
        dropout=config.drops("hidden_dropout_prob", "attention_probs_dropout_prob"),
    )


def _t5(model_type: str, config: _Config) -> ModelShape:
    """T5: encoder and decoder without biases; a stack shares its relative positions."""
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, head_dim = config.number("num_attention_heads"), config.number("d_kv", 64)
    inner, vocab = config.number("intermediate_size"), config.number("vocab_size")
    decoder_layers = config.number("num_decoder_layers", layers)
    attention = 4 * hidden * heads * head_dim
    encoder = attention + 2 * hidden * inner + 2 * hidden
    decoder = 2 * attention + 2 * hidden * inner + 3 * hidden
    biases = 2 * config.number("relative_attention_num_buckets", 32) * heads
    tied = config.flag("tie_word_embeddings", default=True)
    embedding = vocab * hidden
    return ModelShape(
        model_type=model_type,
        parameters=embedding * (1 if tied else 2)
        + layers * encoder
        + decoder_layers * decoder
        + biases
        + 2 * hidden,
        layer_parameters=decoder,
        embedding_parameters=embedding,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=decoder_layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_positions=None,
        gated_mlp=False,
        tied_head=tied,
        norms_per_layer=3,
        dropout=config.drops("dropout_rate"),
        encoder_layers=layers,
    )


def _vit(model_type: str, config: _Config) -> ModelShape:
    """ViT with a head for image classification."""
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, inner = config.number("num_attention_heads"), config.number("intermediate_size")
    patch, labels = config.number("patch_size", 16), config.number("num_labels", 2)
    patches = (config.number("image_size", 224) // patch) ** 2
    layer = _encoder_layer(hidden, inner)
    projection = config.number("num_channels", 3) * patch * patch * hidden + hidden
    embedding = (patches + 2) * hidden  # positions of the patches and of the class token; the token
    return ModelShape(
        model_type=model_type,
        parameters=embedding + projection + layers * layer + 2 * hidden + hidden * labels + labels,
        layer_parameters=layer,
        embedding_parameters=embedding,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=labels,
        patches=patches,
        max_positions=None,
        gated_mlp=False,
        tied_head=False,
        norms_per_layer=2,
    )


def _unknown(model_type: str, config: _Config) -> ModelShape:
    """A type that isn't known: counted as a Llama, by whatever names its sizes go."""
    from dataclasses import replace

    known = config.renamed(_OTHER_NAMES)
    hidden = known.number("hidden_size")
    guesses = {
        "intermediate_size": 4 * hidden,
        "num_attention_heads": max(1, hidden // 64),
        "vocab_size": 32000,
    }
    missing = tuple(name for name in guesses if not known.has(name))
    shape = _llama(model_type, known.completed({name: guesses[name] for name in missing}))
    return replace(shape, exact=False, guessed=("model_type", *missing))


def _head(config: _Config, matrix: int, hidden: int, *, tied: bool) -> tuple[int, bool]:
    """Parameters of a decoder's head, and whether it is the embedding (`tied`: the default)."""
    if config.classifies:
        return config.number("num_labels", 2) * hidden, False
    tied = config.flag("tie_word_embeddings", default=tied)
    return (0 if tied else matrix), tied


def _encoder_layer(hidden: int, inner: int) -> int:
    """Four square matrices, two of the MLP, all with biases, and two LayerNorms."""
    return 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden


_Build = Callable[[str, _Config], ModelShape]
_GPT2 = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_T5 = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "d_ff",
}
# the same sizes as other families name them
_OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model", "dim", "hidden_dim", "model_dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers", "depth"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("n_kv_heads", "num_kv_heads", "multi_query_group_num"),
    "intermediate_size": ("n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "ff_dim"),
    "vocab_size": ("padded_vocab_size", "n_vocab"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
_FAMILIES: dict[str, tuple[_Build, dict[str, str]]] = {
    "llama": (_llama, {}),
    "mistral": (_llama, {}),
    "mixtral": (_llama, {}),
    "qwen2": (_llama, {}),
    "qwen3": (_llama, {}),
    "qwen3_moe": (_llama, {}),
    "gemma3_text": (_llama, {}),
    "olmo2": (_llama, {}),
    "gpt2": (_gpt, _GPT2),
    "gpt_neox": (_gpt, {}),
    "bert": (_bert, {}),
    "roberta": (_bert, {}),
    "t5": (_t5, _T5),
    "vit": (_vit, {}),
}
