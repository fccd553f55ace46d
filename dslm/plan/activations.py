"""What autograd keeps of a forward pass, and the most that forward and backward need beside it.

Bytes for one micro batch on one rank, from the shape alone. The terms are the tensors that each
operation of transformers 5 saves for its backward pass, found by following the storages that live
after a forward pass; docs/planner-accuracy.md holds them against that. As in Korthikanti et al.
(arXiv 2205.05198, section 4.1) the masks of dropout take a byte an element on an accelerator.

Legend: T tokens of a micro batch (b sequences of s), e bytes of an element, H hidden size, I
intermediate size, A heads × head size, K key-value heads × head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dslm.plan.shape import ModelShape

FP32 = 4
PACKED = ("gpt2", "gpt_neox")  # query, key and value come from one linear layer
_INDEX = 8  # bytes of a token id


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One forward and backward pass: how much goes through, and how it is computed."""

    sequences: int
    length: int  # of a sequence, on this rank
    element: int  # bytes
    attention: str = "sdpa"  # eager | sdpa | flash_attention_2
    masked: bool = False  # an explicit mask: several documents in a sample, or padding
    on_cpu: bool = False
    checkpointing: bool = False
    liger: bool = False
    tensor_parallel: int = 1
    causal: bool = True  # the loss is computed in fp32, over every token
    classifies: bool = False  # a head over some classes, a row a sequence: next to nothing
    keys: int = 0  # length of the sequence that attention sees; 0: `length`
    lora_rank: int = 0  # of adapters on every linear layer; 0: all parameters are trained

    @property
    def tokens(self) -> int:
        """T."""
        return self.sequences * self.length

    @property
    def seen(self) -> int:
        """Length of a sequence as attention sees it: whole, where ranks share one."""
        return self.keys or self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Bytes of one pass."""

    kept: int  # by autograd between forward and backward, without the loss's own
    behind: int  # of that, behind the last layer: gone when the backward pass reaches it
    loss_kept: int  # by the loss, between forward and backward
    loss_forward: int  # at most, while the loss is computed, beside `kept`
    loss_backward: int  # at most, in the first operations of the backward pass, beside `kept`
    layer: int  # of one layer, when its backward pass starts
    layer_input: int  # kept of a layer that is computed once more
    temporary: int  # at most, inside one layer's backward pass

    @property
    def logits(self) -> int:
        """The most that logits and loss take."""
        return max(self.loss_forward, self.loss_backward)


def activations(shape: ModelShape, one: Pass) -> Activations:
    """The activations of a pass."""
    layer = layer_bytes(shape, one)
    layers = shape.layers + shape.encoder_layers
    behind, outside = _behind(shape, one), _outside(shape, one)
    layer_input = one.tokens * shape.hidden_size * one.element if one.checkpointing else 0
    if one.checkpointing:
        # of each layer only its input is kept; one layer at a time is computed again
        kept = layers * layer_input + behind + outside
        if one.masked and one.attention == "sdpa":
            kept += one.tokens * one.seen  # the mask, which every layer is given again
    else:
        kept = layers * layer + behind + outside
    loss_kept, forward, backward = _loss(shape, one)
    if one.lora_rank and one.causal:
        forward += one.tokens * shape.hidden_size * one.element  # the head's input, not kept
    return Activations(
        kept=kept,
        behind=behind,
        loss_kept=loss_kept,
        loss_forward=forward,
        loss_backward=backward,
        layer=layer,
        layer_input=layer_input,
        temporary=_temporary(shape, one),
    )


def layer_bytes(shape: ModelShape, one: Pass) -> int:
    """What autograd keeps of one layer."""
    kept = _LAYERS.get(shape.model_type, _llama)(shape, one)
    if not one.lora_rank:
        return kept
    # each adapter keeps what its first half gives
    adapters = _lora_layers(shape) * one.lora_rank * one.element
    return kept + one.tokens * (adapters - _scaled(shape, one))


def _lora_layers(shape: ModelShape) -> int:
    """Linear layers with adapters in a layer of the model; peft leaves experts alone."""
    attention = 2 if shape.model_type in PACKED else 4
    return attention + (0 if shape.experts else 3 if shape.gated_mlp else 2)


def _scaled(shape: ModelShape, one: Pass) -> int:
    """Bytes a token of what the RMSNorms of a layer scale: not kept where the scale is frozen."""
    if not shape.gated_mlp or one.liger:
        return 0
    h, split = shape.hidden_size, one.tensor_parallel
    heads = shape.attention_width // split + shape.kv_width // min(split, shape.kv_heads)
    if shape.model_type == "gemma3_text":
        return FP32 * (4 * h + heads)
    if shape.model_type == "olmo2":
        return FP32 * (2 * h + heads)
    return one.element * (2 * h + heads * shape.model_type.startswith("qwen3"))


def _llama(shape: ModelShape, one: Pass) -> int:
    """RMSNorm before attention and MLP, rotary positions, a gated MLP of three matrices."""
    t, e = one.tokens, one.element
    h, split = shape.hidden_size, one.tensor_parallel
    if shape.model_type == "gemma3_text":
        # four norms, computed in fp32 to the end; two of them feed a linear layer
        norms = t * (4 * (2 * FP32 * h + FP32) + 2 * e * h)
    elif shape.model_type == "olmo2":
        # norms of what attention and MLP give; their inputs are kept for the linear layers
        norms = t * (2 * (2 * FP32 * h + FP32) + 2 * e * h)
    elif one.liger:
        norms = t * (2 * 2 * e * h + 2 * FP32)  # a fused norm keeps its input and its output
    else:
        norms = 2 * _rms_norm(t, h, e)
    queries = 0
    heads, width, keys = shape.heads // split, shape.attention_width // split, shape.kv_width
    keys //= min(split, shape.kv_heads)
    if shape.model_type in ("qwen3", "qwen3_moe"):
        queries = t * (FP32 + e) * (width + keys) + t * FP32 * (heads + keys // shape.head_dim)
    elif shape.model_type == "gemma3_text":
        queries = t * 2 * FP32 * (width + keys) + t * FP32 * (heads + keys // shape.head_dim)
    elif shape.model_type == "olmo2":
        queries = t * (2 * FP32 * (width + keys) + 2 * FP32)
    # gate, its activation, up, their product; Liger keeps gate and up, and computes the rest again
    rows = t * shape.experts_per_token
    mlp = (3 if one.liger else 4) * rows * shape.intermediate_size // split * e
    return norms + queries + _attention(shape, one) + mlp + _routing(shape, one)


def _routing(shape: ModelShape, one: Pass) -> int:
    """What a layer of experts keeps beside their MLPs, with a row for each token and its expert.

    Source: transformers' integrations/moe.py, grouped_mm_experts_forward: the rows in the order of
    the experts, what comes out, its weights, and the orders there and back; the router's softmax.
    """
    if not shape.experts:
        return 0
    rows = one.tokens * shape.experts_per_token
    order = 4 * rows * _INDEX
    return 2 * rows * shape.hidden_size * one.element + order + one.tokens * shape.experts * FP32


def _gpt2(shape: ModelShape, one: Pass) -> int:
    """LayerNorm before attention and MLP, GELU written out with tanh: five tensors of width I."""
    t, e, h, split = one.tokens, one.element, shape.hidden_size, one.tensor_parallel
    norms = t * (4 * e * h + 4 * e)  # two, each with its input, its output, mean and deviation
    mlp = 5 * t * shape.intermediate_size // split * e
    return norms + _attention(shape, one, packed=True) + mlp + 2 * _dropout(shape, one)


def _gpt_neox(shape: ModelShape, one: Pass) -> int:
    """Attention and MLP side by side, rotary positions for a part of each head, exact GELU."""
    t, e, h, split = one.tokens, one.element, shape.hidden_size, one.tensor_parallel
    norms = t * (3 * e * h + 4 * e)  # two norms share their input
    width = shape.attention_width // split
    # query and key are made anew by the rotation, and the value is a view of all three
    attention = _attention(shape, one, packed=True) + t * 2 * width * e
    if one.attention != "eager":
        attention += t * width * e  # the output, once more, in the order of the tokens
    mlp = 2 * t * shape.intermediate_size // split * e
    return norms + attention + mlp


def _bert(shape: ModelShape, one: Pass) -> int:
    """LayerNorm after attention and MLP, exact GELU."""
    t, e, h, split = one.tokens, one.element, shape.hidden_size, one.tensor_parallel
    norms = t * (4 * e * h + 4 * e)  # inputs and outputs; the outputs feed the linear layers
    mlp = 2 * t * shape.intermediate_size // split * e
    return norms + _attention(shape, one) + mlp + 2 * _dropout(shape, one)


def _t5(shape: ModelShape, one: Pass) -> int:
    """The mean of encoder and decoder layers; a bias on the scores, so never flash attention."""
    t, e, h = one.tokens, one.element, shape.hidden_size
    layers = shape.layers + shape.encoder_layers
    attentions = (2 * shape.layers + shape.encoder_layers) / layers
    norm = _rms_norm(t, h, e) + (e * t * h if e != FP32 else 0)
    attention = _attention(shape, one) + _dropout(shape, one) + norm
    inner = t * shape.intermediate_size
    mask = _mask_bytes(one)
    mlp = inner * (2 * e + mask) + _dropout(shape, one) + norm
    return int(attentions * attention) + mlp


def _rms_norm(tokens: int, width: int, element: int) -> int:
    """The input in fp32, the normalised input, the output, and the root of every token."""
    return tokens * (width * (FP32 + 2 * element) + FP32)


def _attention(shape: ModelShape, one: Pass, *, packed: bool = False) -> int:
    """Query, key, value, what attention computed of them, and the output.

    Args:
        shape: the model's shape.
        one: the pass.
        packed: query, key and value are views of one tensor.
    """
    t, e, split = one.tokens, one.element, one.tensor_parallel
    heads, width = shape.heads // split, shape.attention_width // split
    keys = shape.kv_width // min(split, shape.kv_heads)
    scores = t * one.seen * heads
    output = t * width * e
    lots = shape.dropout and one.on_cpu and one.attention == "sdpa"
    if one.attention == "eager" or lots or shape.model_type == "t5":
        grouped = width if not packed else keys
        own = t * (width + 2 * grouped) * e
        if shape.dropout:
            # softmax, the mask of dropout, and what it lets through
            if lots and e != FP32:
                # PyTorch's fallback for a CPU computes in fp32
                return output + t * 3 * width * FP32 + 3 * scores * FP32
            return output + own + scores * (2 * e + _mask_bytes(one))
        soft = FP32 + (e if e != FP32 else 0) if shape.gated_mlp or not packed else e
        return output + own + scores * soft
    masked = one.masked and one.attention == "sdpa"
    # with a mask, keys and values are repeated for each head; a single one needs no copy
    repeated = width if masked and shape.kv_heads > 1 else keys
    kept = t * (width + 2 * repeated) * e + output + t * heads * FP32
    if masked:
        kept += t * one.seen * e  # the mask, in the format of the scores
    return kept


def _mask_bytes(one: Pass) -> int:
    """Bytes of an element of dropout's mask: on a CPU the mask has the format of what it masks."""
    return one.element if one.on_cpu else 1


def _dropout(shape: ModelShape, one: Pass) -> int:
    return one.tokens * shape.hidden_size * _mask_bytes(one) if shape.dropout else 0


def _behind(shape: ModelShape, one: Pass) -> int:
    """The norm before the head, and what the head itself keeps."""
    t, e, h = one.tokens, one.element, shape.hidden_size
    frozen = bool(one.lora_rank) and one.causal  # norm and head: no need for what they multiply
    if not shape.gated_mlp:
        # its input and its output; BERT's head is a linear layer, GELU and a norm
        kept = 3 if shape.model_type in ("bert", "roberta") else 2
        return t * e * h * (kept - frozen)
    if shape.model_type in ("gemma3_text", "olmo2"):
        return t * (2 * FP32 * h + FP32 + e * h - (FP32 + e) * h * frozen)
    return _rms_norm(t, h, e) - t * (1 if one.liger else 2) * e * h * frozen


def _outside(shape: ModelShape, one: Pass) -> int:
    """Positions, ids, dropout and norm of the embeddings; what frozen embeddings spare."""
    t, e, h = one.tokens, one.element, shape.hidden_size
    ids = 2 * t * _INDEX
    if shape.gated_mlp:
        rotary = 2 * (t if one.masked else one.length) * shape.head_dim * e
        if shape.model_type == "gemma3_text":
            rotary *= 2  # one for local layers, one for global ones
        elif shape.model_type == "olmo2":
            rotary = rotary * FP32 // e
        return rotary + ids - t * _frozen_start(shape, one)
    norm = 2 * e * t * h if shape.model_type in ("bert", "roberta") else 0
    return norm + _dropout(shape, one) + ids - t * _frozen_start(shape, one)


def _frozen_start(shape: ModelShape, one: Pass) -> int:
    """Bytes a token that the first layer doesn't keep where the embeddings are frozen."""
    if not one.lora_rank or not one.causal:
        return 0
    e, h = one.element, shape.hidden_size
    if one.checkpointing:
        # the embedding is made to need a gradient; GPT-2 adds the positions to it, and it stays
        return -e * h if shape.model_type == "gpt2" else 0
    # the first norm's input needs none; OLMo 2 has its norms behind attention and MLP
    if shape.model_type == "olmo2":
        return 0
    return (FP32 if shape.gated_mlp and not one.liger else e) * h


def _loss(shape: ModelShape, one: Pass) -> tuple[int, int, int]:
    """Kept, and the peaks of forward and backward.

    Source: transformers' loss_utils.ForCausalLMLoss: logits, the same in fp32, log-probabilities;
    backward first makes the gradients of both, in fp32. Liger's fused loss makes logits of a few
    tokens at a time and keeps the gradient of the hidden states (liger_kernel
    ops/fused_linear_cross_entropy.py): as many chunks as V / H.
    """
    v = shape.vocab_size
    if one.liger and not one.classifies:
        chunk = -(-one.tokens * shape.hidden_size // v)
        hidden = one.tokens * shape.hidden_size * one.element
        weight = v * shape.hidden_size * one.element
        return hidden, hidden + weight + chunk * v * (one.element + FP32), hidden + weight
    cells = 0 if one.classifies else one.tokens * v
    if not one.causal:
        e = one.element
        return cells * e, 2 * cells * e, 3 * cells * e
    upcast = 0 if one.element == FP32 else FP32
    return cells * FP32, cells * (one.element + upcast + FP32), cells * 3 * FP32


def _temporary(shape: ModelShape, one: Pass) -> int:
    """Gradients of the widest tensors of a layer: the MLP's, three, and one of them is let go."""
    rows = one.tokens * shape.experts_per_token
    return 2 * rows * shape.intermediate_size // one.tensor_parallel * one.element


_LAYERS: dict[str, Callable[[ModelShape, Pass], int]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "bert": _bert,
    "roberta": _bert,
    "vit": _bert,
    "t5": _t5,
}
