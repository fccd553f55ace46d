"""Checks on the model: a type that transformers has, for the task, with sizes that go together."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator

from dslm.decide.checks import facts
from dslm.decide.checks.base import ALL, RECIPES, TRAINING, Case, Check, Problem
from dslm.decide.checks.facts import ModelType
from dslm.errors import did_you_mean
from dslm.units import divisors, number_of

CAUSAL = "AutoModelForCausalLM"
# The auto class of each task; held equal to the worker's tasks by a test.
HEADS = {
    "pretrain": CAUSAL,
    "sft": CAUSAL,
    "dpo": CAUSAL,
    "orpo": CAUSAL,
    "kto": CAUSAL,
    "grpo": CAUSAL,
    "sequence": CAUSAL,
    "mlm": "AutoModelForMaskedLM",
    "classify": "AutoModelForSequenceClassification",
    "reward": "AutoModelForSequenceClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "vision": "AutoModelForImageClassification",
}
_EXAMPLES = {
    CAUSAL: "llama, qwen3, gpt2",
    "AutoModelForMaskedLM": "bert, roberta, modernbert",
    "AutoModelForSequenceClassification": "bert, roberta, llama",
    "AutoModelForSeq2SeqLM": "t5, bart",
    "AutoModelForImageClassification": "vit, resnet",
}
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn")
_POSITIVE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "image_size", "patch_size",
    "num_channels",
)  # fmt: skip
_HEAD_SIZES = ("head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim", "attention_head_size")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_MISSPELT = 0.9  # how alike two names of entries are, when one is meant for the other


def _trusted(case: Case) -> bool:
    """Return whether the model brings code of its own, which may do anything."""
    return case.recipe.model.trust_remote_code and "auto_map" in case.architecture


def _model_type(case: Case) -> Iterator[Problem]:
    name = case.architecture.get("model_type")
    if name is None or case.kind is not None or _trusted(case) or not facts.complete():
        return
    if "auto_map" in case.architecture:
        hint = "it brings Python code: `--set model.trust_remote_code=true` runs it"
    else:
        hint = did_you_mean(str(name), facts.model_types()) or "`llama` and `bert` are two"
    said = f"{case.source.file}: " if case.source.file else ""
    version = facts.made_for("transformers")
    yield Problem(
        key=case.at("model_type"),
        message=f"{said}transformers {version} has no model type `{name}`",
        hint=hint,
    )


def _head(case: Case) -> Iterator[Problem]:
    head, kind, task = HEADS.get(case.recipe.task), case.kind, case.recipe.task
    if head is None or kind is None or _trusted(case):
        return
    if head not in kind.heads and facts.complete():
        can = [name for name, other in HEADS.items() if other in kind.heads]
        yield Problem(
            key="task",
            message=f"a model of type `{kind.name}` can't be trained for the task `{task}`: "
            f"transformers has no {head} of it",
            hint=(f"it can be trained for {', '.join(can)}; " if can else "")
            + f"`{task}` takes {_EXAMPLES[head]} and others",
        )
    elif (
        head == CAUSAL
        and HEADS["mlm"] in kind.heads
        and "is_decoder" in kind.fields
        and CAUSAL in kind.heads
        and "AutoModelForSeq2SeqLM" not in kind.heads
        and case.architecture.get("is_decoder") is not True
    ):
        scratch = case.recipe.model.init == "scratch"
        yield Problem(
            key="task",
            message=f"`{kind.name}` is an encoder: each token sees those after it, so there is "
            f"nothing to predict in the task `{task}`",
            hint="use `task: mlm`"
            + (", or `--set model.architecture.is_decoder=true`" if scratch else ""),
        )


def _entries(case: Case) -> Iterator[Problem]:
    """Types and names of the entries of the recipe's own block."""
    kind = case.kind
    if kind is None or case.source.file is not None or not facts.complete():
        return
    known = {*kind.fields, *kind.names}
    for name, value in case.architecture.items():
        wanted = kind.fields.get(kind.own(name))
        if wanted is not None and not facts.is_of(value, wanted, exact=True):
            yield Problem(
                key=case.at(name),
                message=f"`{name}` of a {kind.name} must be {facts.said(wanted)}, not {value!r}",
            )
        elif name not in known and name != "model_type":
            near = did_you_mean(name, known, likeness=_MISSPELT)
            if near:  # others are notes of whoever made it: transformers keeps them
                text = f"the config of a {kind.name} has no `{name}`"
                yield Problem(key=case.at(name), message=text, hint=near)


def _number(case: Case, name: str) -> int | None:
    """A size that is given and is a whole number."""
    if case.kind is None:
        return None
    value = case.kind.value(case.architecture, name)
    return value if type(value) is int else None


def _own(case: Case, kind: ModelType, name: str) -> str:
    """A size by the name under which it is given."""
    own = kind.own(name)
    return own if own in case.architecture or name not in case.architecture else name


def _positive(case: Case) -> Iterator[Problem]:
    kind = case.kind
    if kind is None:
        return
    for name in _POSITIVE:
        size = _number(case, name)
        if size is not None and size <= 0:
            own = _own(case, kind, name)
            text = f"`{own}` must be a positive whole number, not {size}"
            yield Problem(key=case.at(own), message=text)


def _heads(case: Case) -> Iterator[Problem]:
    width, heads = _number(case, "hidden_size"), _number(case, "num_attention_heads")
    kind = case.kind
    if kind is None or width is None or heads is None or min(width, heads) < 1:
        return
    given = any(case.architecture.get(name) is not None for name in _HEAD_SIZES)
    if width % heads and (not given or "heads divide" in kind.code):
        near = divisors(width)
        place = bisect(near, heads)
        yield Problem(
            key=case.at(_own(case, kind, "num_attention_heads")),
            message=f"{heads} heads can't share a width of {width} "
            f"(`{_own(case, kind, 'hidden_size')}`): it is not a multiple",
            hint=f"{' or '.join(map(str, near[place - 1 : place + 1]))} would work",
        )
        return
    size = _number(case, "head_dim") or width // heads
    turns = "rope_parameters" in kind.fields and not isinstance(
        case.architecture.get("partial_rotary_factor"), float
    )
    if turns and size % 2 and kind.own("head_dim") == "head_dim":
        yield Problem(
            key=case.at(_own(case, kind, "num_attention_heads")),
            message=f"heads of size {size} can't be turned by rotary positions: it is odd",
            hint="choose `hidden_size` / `num_attention_heads` even",
        )


def _key_value_heads(case: Case) -> Iterator[Problem]:
    heads, shared = _number(case, "num_attention_heads"), _number(case, "num_key_value_heads")
    kind = case.kind
    if kind is None or kind.own("num_key_value_heads") not in kind.fields:
        return
    if heads is None or shared is None or min(heads, shared) < 1:
        return
    if heads % shared:
        yield Problem(
            key=case.at("num_key_value_heads"),
            message=f"{shared} key-value heads can't be shared by {number_of(heads, 'head')} "
            "evenly",
            hint=f"{' or '.join(map(str, divisors(heads)[-6:]))} would work",
        )


def _activation(case: Case) -> Iterator[Problem]:
    known = facts.names("activations")
    if case.kind is None or not facts.complete():
        return
    for name in _ACTIVATIONS:
        value = case.architecture.get(name)
        if name in case.kind.fields and isinstance(value, str) and value not in known:
            yield Problem(
                key=case.at(name),
                message=f"there is no activation `{value}`",
                hint=did_you_mean(value, known) or f"known: {', '.join(known)}",
            )
    projection = case.architecture.get("feed_forward_proj")  # of T5 and its kin: `gated-gelu`
    if isinstance(projection, str) and "feed_forward_proj" in case.kind.fields:
        gate, _, last = projection.rpartition("-")
        if gate not in ("", "gated") or last not in known:
            yield Problem(
                key=case.at("feed_forward_proj"),
                message=f"there is no activation `{projection}`",
                hint=did_you_mean(projection, [*known, "gated-gelu", "gated-silu"])
                or "such as `relu` or `gated-gelu`",
            )


def _positions(case: Case) -> Iterator[Problem]:
    """Rotary positions by a rule that there is, and special tokens within the vocabulary."""
    kinds = facts.names("rope_types")
    for name in ("rope_parameters", "rope_scaling"):
        block = case.architecture.get(name)
        used = block.get("rope_type", block.get("type")) if isinstance(block, dict) else None
        if isinstance(used, str) and used not in kinds and facts.complete():
            yield Problem(
                key=case.at(name),
                message=f"there is no rule `{used}` for rotary positions",
                hint=did_you_mean(used, kinds) or f"known: {', '.join(kinds)}",
            )
    entries = _number(case, "vocab_size")
    if not entries:
        return
    for name in _TOKENS:
        token = case.architecture.get(name)
        if type(token) is int and token >= entries:
            yield Problem(
                key=case.at(name),
                message=f"`{name}` {token} is beyond the vocabulary of {entries}",
                hint=f"0 to {entries - 1}, or leave it out: the tokenizer's is taken",
            )


def _length(case: Case) -> Iterator[Problem]:
    longest = case.profile.max_positions if case.profile else None
    wanted = case.recipe.data.sequence_length
    if longest is not None and case.recipe.task != "vision" and wanted > longest:
        yield Problem(
            key="data.sequence_length",
            message=f"sequences of {wanted} tokens are longer than the model's {longest} positions",
            hint=f"`--set data.sequence_length={longest}` or less",
        )


def _recomputation(case: Case) -> Iterator[Problem]:
    kind = case.kind
    planned = case.strategy is not None and case.strategy.activation_checkpointing
    wanted = planned or case.recipe.model.activation_checkpointing is True
    if kind is None or not wanted or _trusted(case):
        return
    if kind.heads and "activation_checkpointing" not in kind.code:
        yield Problem(
            key="model.activation_checkpointing",
            message=f"transformers can't recompute activations in a model of type `{kind.name}`",
            hint="`--set model.activation_checkpointing=false`",
        )


CHECKS = (
    Check(
        name="a model type that there is",
        looks_at="model_type",
        judge=_model_type,
        verbs=RECIPES,  # of a bare model the plan says what it guesses
    ),
    Check(name="a model for the task", looks_at="task, model_type", judge=_head, verbs=TRAINING),
    Check(
        name="entries of the right type", looks_at="model.architecture", judge=_entries, verbs=ALL
    ),
    Check(name="sizes above zero", looks_at="sizes of the model", judge=_positive),
    Check(name="heads divide the width", looks_at="hidden_size, num_attention_heads", judge=_heads),
    Check(
        name="key-value heads divide the heads",
        looks_at="num_attention_heads, num_key_value_heads",
        judge=_key_value_heads,
    ),
    Check(name="an activation that there is", looks_at="hidden_act and its kin", judge=_activation),
    Check(
        name="positions and special tokens that there are",
        looks_at="rope_parameters, vocab_size, pad_token_id and its kin",
        judge=_positions,
    ),
    Check(
        name="sequences no longer than the model's",
        looks_at="data.sequence_length",
        judge=_length,
        verbs=TRAINING,
        planned=True,
    ),
    Check(
        name="recomputation that the model can do",
        looks_at="model.activation_checkpointing",
        judge=_recomputation,
        verbs=TRAINING,
        planned=True,
    ),
)
