"""The model of a request, on the meta device, and the batch that its task makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, initialization

from dslm.errors import RecipeError, Where
from dslm.worker.adapter_targets import check_targets
from dslm.worker.adapters import TASK_TYPES, put_adapters
from dslm.worker.features import check_loss, run_every_layer
from dslm.worker.layout.attention import DOCUMENTS, attends_plainly
from dslm.worker.layout.tiles import tile_loss, tile_mlps
from dslm.worker.model_config import set_cache
from dslm.worker.number_formats import DTYPES
from dslm.worker.trace.standins import chunk_loss, fuse_loss

NEXT_TOKEN = ("pretrain", "sft", "dpo", "sequence", "script")
AUTO_CLASSES = {
    **dict.fromkeys(NEXT_TOKEN, "AutoModelForCausalLM"),
    "mlm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "vision": "AutoModelForImageClassification",
}
# tasks whose loss is computed from the logits, by the worker; the others' is the model's own
_OWN_LOSS = ("mlm", "seq2seq", "classify", "vision")
_WORD = 5  # a token that is nothing special in the types' default configs


@dataclass(frozen=True, slots=True)
class Traced:
    """A model to trace, as the trainer would have it."""

    model: nn.Module
    config: Any
    task: str
    attention: str
    away: bool = False  # what activations are recomputed from is kept elsewhere
    packed: bool = True

    @property
    def base(self) -> Any:
        """The model without adapters around it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model


def config_of(architecture: Mapping[str, Any]) -> Any:
    """Return the transformers config of an architecture block.

    Raises:
        RecipeError: the installed transformers has no such type.
    """
    kind = architecture["model_type"]
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            f"transformers {transformers.__version__} has no model type `{kind}`",
            where=Where(key="model.architecture.model_type"),
        )
    sizes = {key: value for key, value in architecture.items() if key != "model_type"}
    return AutoConfig.for_model(kind, **sizes)


def build(request: Mapping[str, Any], *, packed: bool = True) -> Traced:
    """Build the model of a request on the meta device.

    Args:
        request: what a profile is asked for.
        packed: whether samples have several documents, where the task lets them.
    """
    config = config_of(request["architecture"])
    return built(config, request, packed=packed)


def built(config: Any, request: Mapping[str, Any], *, packed: bool) -> Traced:
    """Build a model from its config on the meta device."""
    task, attention = request["task"], request["attention"]
    dtype = DTYPES[request["precision"]]
    config.dtype = dtype
    set_cache(config, on=False)
    if task == "classify" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # in training the tokenizer's: classifiers look for the last token
    factory = getattr(transformers, AUTO_CLASSES[task])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), initialization.no_init_weights():
            asked = attention if attention == "eager" else None
            model = factory.from_config(config, attn_implementation=asked)
            if attention == "flash_attention_2" and model._supports_flash_attn:
                model.config._attn_implementation = attention
            elif attention == DOCUMENTS and attends_plainly(model):
                model.set_attn_implementation(DOCUMENTS)
            model.to(dtype)
            model.tie_weights()
            model.train()
            run_every_layer(model)
            if request.get("fused_loss") and task in NEXT_TOKEN:
                fuse_loss(model)
            if request.get("chunked_loss"):
                check_loss(model)
                chunk_loss(model)
            if request.get("lora"):
                model = _with_adapters(model, request["lora"], task)
            if request.get("tiled_mlp"):
                tile_mlps(model)
            if request.get("tiled_loss"):
                tile_loss(model)
    finally:
        torch.set_default_dtype(before)
    return Traced(
        model=model,
        config=model.config,
        task=task,
        attention=str(getattr(model.config, "_attn_implementation", "eager") or "eager"),
        away=bool(request.get("offload_activations")),
        packed=packed,
    )


def _with_adapters(model: Any, lora: Mapping[str, Any], task: str) -> Any:
    from peft import LoraConfig

    check_targets(model, lora)
    return put_adapters(
        model,
        LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["rank"],
            lora_dropout=lora.get("dropout", 0.0),
            target_modules=lora["target_modules"],
            exclude_modules=lora.get("exclude") or None,
            task_type=TASK_TYPES.get(task),
            modules_to_save=[
                *lora.get("modules_to_save", ()),
                *(["classifier"] if task == "vision" else []),
            ]
            or None,
            rank_pattern=lora.get("rank_pattern", {}),
            use_dora=lora.get("dora", False),
        ),
        init=lora.get("init", "default"),
    )


def batch(traced: Traced, samples: int, length: int) -> dict[str, torch.Tensor]:
    """Return a batch as the task's collator makes it.

    Its shapes count; for models that ask for values, all tokens are some word, and the last ends
    the text.
    """
    accepted = set(inspect.signature(traced.base.forward).parameters)
    if traced.task == "vision":
        return _images(traced, samples)
    ids = torch.full((samples, length), _WORD)
    end = getattr(traced.config, "eos_token_id", None)
    if isinstance(end, int) and not ids.is_meta:
        ids[:, -1] = end
    made = {"input_ids": ids}
    positions = torch.arange(length).repeat(samples, 1)
    if traced.task in NEXT_TOKEN:
        made |= {"position_ids": positions, "labels": ids.clone()}
    elif traced.task == "mlm":
        pairs = torch.ones((samples, 1, length, length), dtype=torch.bool)
        mask = pairs if traced.packed else torch.ones_like(ids)
        if traced.packed and traced.attention == "eager":
            # the Trainer casts numbers of a batch to the model's format
            mask = mask.to(next(traced.model.parameters()).dtype)
        made |= {
            "labels": ids.clone(),
            "position_ids": positions,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(positions),
        }
    elif traced.task == "seq2seq":
        made |= {
            "attention_mask": torch.ones_like(ids),
            "decoder_input_ids": ids.clone(),
            "labels": ids.clone(),
        }
    else:
        made |= {
            "attention_mask": torch.ones_like(ids),
            "labels": torch.ones((samples,), dtype=torch.long),
        }
    return {name: value for name, value in made.items() if name in accepted or name == "labels"}


def _images(traced: Traced, samples: int) -> dict[str, torch.Tensor]:
    size = getattr(traced.config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = getattr(traced.config, "num_channels", 3)
    return {
        "pixel_values": torch.empty(
            (samples, channels, height, width), dtype=next(traced.model.parameters()).dtype
        ),
        "labels": torch.ones((samples,), dtype=torch.long),
    }


def loss_of(traced: Traced) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Return a function that runs the forward pass of the task and returns its loss."""
    if traced.task not in _OWN_LOSS:
        return lambda inputs: traced.model(**inputs).loss

    def loss(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = inputs.pop("labels")
        outputs = traced.model(**inputs)
        # as dslm.worker.tasks.base.cross_entropy
        return torch.nn.functional.cross_entropy(
            outputs.logits.flatten(0, -2).float(), labels.flatten(), reduction="sum"
        )

    return loss
