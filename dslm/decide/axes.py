"""The axes of the matrix of what works with what: families, features, stages, precisions, devices.

Tables alone: which small model stands for a family, what a feature sets, and how a recipe is known
to have it. What was found in each cell is in `matrix.json` (`dslm/decide/matrix.py`); it is run by
`make matrix`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from pydantic import BaseModel

from dslm.codec import Json
from dslm.recipe.features import FEATURES, features_of
from dslm.recipe.packs import PACKED_TASKS
from dslm.recipe.schema import Optimizer, Parallel, Recipe

DEVICES = ("cpu", "cuda")
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
RANKS = 2  # of every cell
PLAIN = "nothing else"
FOLDER = "FOLDER"  # in a setting: a folder of whoever runs the cell

_VOCABULARY = 300
_SIZES: Mapping[str, Json] = {
    "vocab_size": _VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_EXPERTS: Mapping[str, Json] = {
    "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """A model type, by a small model of it and the preset whose training it takes the place in."""

    name: str
    recipe: str
    task: str
    sizes: Mapping[str, Json]

    @property
    def architecture(self) -> dict[str, Json]:
        """The whole block of a recipe."""
        return {"model_type": self.name, **self.sizes}


FAMILIES = (
    Family("llama", "quickstart", "pretrain", _SIZES),
    Family("qwen3", "quickstart", "pretrain", {**_SIZES, "head_dim": 8}),
    Family(
        "gemma3_text", "quickstart", "pretrain",
        {**_SIZES, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    Family(
        "gpt2", "quickstart", "pretrain",
        {"vocab_size": _VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    Family("qwen3_moe", "quickstart", "pretrain", {**_SIZES, **_EXPERTS, "head_dim": 8}),
    Family(
        "bert", "quickstart-mlm", "mlm",
        {name: size for name, size in _SIZES.items() if name != "num_key_value_heads"},
    ),
    Family(
        "t5", "quickstart-seq2seq", "seq2seq",
        {"vocab_size": _VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
         "num_decoder_layers": 2, "num_heads": 4},
    ),
)  # fmt: skip
SETTINGS = (
    f"model.tokenizer.vocab_size={_VOCABULARY}", "data.max_documents=60", "data.eval=0",
    "data.sequence_length=32", "batch.global_size=4", "batch.micro_size=2",
    "optimizer.lr=0.001", "watchdog.timeout=90",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A feature, as the matrix names it: what a cell sets, and whether a recipe has it."""

    name: str
    on: Callable[[Recipe], bool]
    settings: tuple[str, ...] = ()
    trained: bool = field(default=False)  # it is of a model that was trained before

    @property
    def key(self) -> str:
        """The key of the recipe that switches it on."""
        return self.name.partition("=")[0]


def _value(key: str, value: Json, *more: str, trained: bool = False) -> Row:
    """The row of one value of a key."""
    section, _, name = key.rpartition(".")

    def on(recipe: Recipe) -> bool:
        return bool(getattr(getattr(recipe, section) if section else recipe, name) == value)

    shown = f"{key}={str(value).lower()}"
    return Row(name=shown, on=on, settings=(shown, *more), trained=trained)


def _shared(name: str) -> Row:
    """The row of something that ranks share."""

    def on(recipe: Recipe) -> bool:
        return getattr(recipe.parallel, name) not in (1, "auto")

    shown = f"parallel.{name}={RANKS}"
    return Row(name=shown, on=on, settings=(shown,))


def _kinds(section: type[BaseModel], name: str) -> Iterator[str]:
    """The words that a field of the schema may have, those for `auto` and nothing left out."""
    for choice in get_args(section.model_fields[name].annotation):
        words = get_args(choice) or (choice,)
        yield from (word for word in words if isinstance(word, str) and word not in _NOTHING)


_NOTHING = ("auto", "none", "adamw")  # what is a default, or is chosen
_HOST = "parallel.offload=optimizer"
# of DeepSpeed's features: what switches them on
_ON: Mapping[str, tuple[str, ...]] = {
    "parallel.offload_ratio": ("parallel.offload_ratio=0.5", _HOST),
    "parallel.super_offload": ("parallel.super_offload=true", _HOST),
    "parallel.zenflow": ("parallel.zenflow=true", _HOST),
}
_LORA = "lora={rank: 4, target_modules: all-linear}"


def _feature(key: str) -> Row:
    def on(recipe: Recipe) -> bool:
        return any(each.key == key for each in features_of(recipe))

    return Row(name=key, on=on, settings=_ON.get(key, (f"{key}=true",)))


_SPECIAL = (
    *(
        _value("parallel.offload", kind, *(("parallel.nvme_path=FOLDER",) * (kind == "nvme")))
        for kind in _kinds(Parallel, "offload")
    ),
    *(_shared(name) for name in ("tensor", "sequence", "expert")),
    *(_feature(each.key) for each in FEATURES),
    *(
        _value("optimizer.name", kind, *(("optimizer.grad_clip=0",) * (kind == "muon")))
        for kind in _kinds(Optimizer, "name")
    ),
    _value("model.activation_checkpointing", True),
    _value("model.liger", True),
    Row(
        name="data.packing=false", settings=("data.packing=false",),
        on=lambda r: not r.data.packing and r.task in PACKED_TASKS,
    ),
    Row(name="lora", on=lambda r: r.lora is not None, settings=(_LORA,), trained=True),
    Row(
        name="lora.dora", on=lambda r: r.lora is not None and r.lora.dora,
        settings=("lora={rank: 4, target_modules: all-linear, dora: true}",), trained=True,
    ),
    *(_value("quantize", kind, _LORA, trained=True) for kind in _kinds(Recipe, "quantize")),
)  # fmt: skip
ROWS: tuple[Row, ...] = (
    Row(name=PLAIN, on=lambda recipe: not any(row.on(recipe) for row in _SPECIAL)),
    *_SPECIAL,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the matrix."""

    device: str
    family: str
    feature: str
    precision: str
    stage: int

    def __str__(self) -> str:
        return f"{self.family}, {self.feature}, ZeRO {self.stage}, {self.precision}, {self.device}"


def cells() -> Iterator[Cell]:
    """Every cell, in the order of the axes."""
    for device in DEVICES:
        for family in FAMILIES:
            for row in ROWS:
                for precision in PRECISIONS:
                    for stage in STAGES:
                        yield Cell(device, family.name, row.name, precision, stage)
