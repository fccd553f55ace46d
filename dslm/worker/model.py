"""The model of a run: from scratch or pretrained, partitioned as it is made under ZeRO-3.

Called after the process group and TrainingArguments exist: transformers then builds inside
`deepspeed.zero.Init`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from dslm.errors import RecipeError, Where
from dslm.recipe.schema import Recipe
from dslm.worker.adapters import keep_packing, quantized, with_lora
from dslm.worker.features import run_every_layer
from dslm.worker.loading import UNLOADABLE, LoadingReport, check_loaded, check_patterns, left_out
from dslm.worker.model_config import set_cache
from dslm.worker.number_formats import DTYPES
from dslm.worker.weight_files import tensors_in_files, whole_numbers, wrongly_tied


def build_model(
    recipe: Recipe,
    auto_class: str,
    tokenizer: PreTrainedTokenizerBase | None,
    report: LoadingReport | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """Build the model.

    Args:
        recipe: the resolved recipe.
        auto_class: name of the transformers auto class of the task.
        tokenizer: its special tokens become the model's; it must fit into the vocabulary.
        report: of `examine_weights`, for a pretrained model.
        settings: further entries of the model's config, such as `num_labels`.

    Raises:
        RecipeError: the model can't be loaded, more of it is missing than the report says, or the
            tokenizer doesn't fit.
    """
    factory = getattr(transformers, auto_class)
    common: dict[str, Any] = {"attn_implementation": attention(recipe)}
    if recipe.model.init == "scratch":
        config = scratch_config(recipe, tokenizer, **settings)
        built = factory.from_config(config, **common)
    else:
        few = quantized(recipe)
        with left_out([one.name for one in report.mismatched] if report else []):
            built, found = _from_pretrained(recipe, factory, **common, **settings, **few)
        if report is not None:
            check_loaded(found, str(recipe.model.name), [*recipe.model.new_parameters, *report.new])
        keep_packing(built)
    if tokenizer is not None and built.config.pad_token_id is None:
        built.config.pad_token_id = tokenizer.pad_token_id  # classifiers look for the last token
    run_every_layer(built)
    set_cache(built.config, on=False)
    if recipe.lora is not None:
        return with_lora(built, recipe)
    return built


def examine_weights(recipe: Recipe, auto_class: str, **settings: Any) -> LoadingReport | None:
    """Check that a pretrained model's files hold every parameter that the recipe doesn't name.

    Nothing is read but names and shapes. Called before there are TrainingArguments: under ZeRO-3
    transformers reports no shapes.

    Returns:
        What is to be new; None for a model from scratch.

    Raises:
        RecipeError: the model can't be loaded, or some of it wouldn't be.
    """
    if recipe.model.init == "scratch":
        return None
    factory = getattr(transformers, auto_class)
    built, report = _from_pretrained(recipe, factory, device_map="meta", **settings)
    tensors = tensors_in_files(str(recipe.model.name), recipe.model.revision)
    report = replace(report, whole=whole_numbers(tensors, built))
    for one, other in wrongly_tied(tensors, built):
        raise RecipeError(
            f"config.json of `{recipe.model.name}` says that `{one}` is `{other}` "
            "(`tie_word_embeddings`), and its files hold two, with other values",
            where=Where(key="model.name"),
            hint="set `tie_word_embeddings` to false there if each is one of its own; else remove "
            f"`{one}` from the files",
        )
    check_patterns(report, recipe.model.new_parameters)
    check_loaded(report, str(recipe.model.name), recipe.model.new_parameters)
    return report


def whole_model(recipe: Recipe, auto_class: str) -> PreTrainedModel:
    """Load a pretrained model whole, in this process; called where nothing is partitioned."""
    factory = getattr(transformers, auto_class)
    return _from_pretrained(recipe, factory, **quantized(recipe))[0]


def _from_pretrained(
    recipe: Recipe, factory: Any, **settings: Any
) -> tuple[PreTrainedModel, LoadingReport]:
    model = recipe.model
    try:
        built, info = factory.from_pretrained(
            model.name,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=DTYPES["fp32" if recipe.autocast else recipe.precision],
            ignore_mismatched_sizes=True,  # the report has them
            output_loading_info=True,
            **settings,
        )
    except UNLOADABLE as e:
        raise RecipeError(
            f"the model `{model.name}` can't be loaded: {str(e).strip().partition(chr(10))[0]}",
            where=Where(key="model.name"),
            hint="a Hub name (is there a network, is `hf auth login` needed?) or a folder whose "
            "files are whole",
        ) from e
    return built, LoadingReport.of(built, info)


def label_settings(labels: list[str]) -> dict[str, Any]:
    """Return the entries of a model's config for classes of these names; none for no names."""
    if not labels:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
    }


def scratch_config(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, **settings: Any
) -> Any:
    """Return the transformers config of an architecture block.

    Raises:
        RecipeError: transformers doesn't know the type, or the tokenizer has more entries.
    """
    sizes = {k: v for k, v in recipe.model.architecture.items() if k != "model_type"}
    kind = recipe.model.architecture["model_type"]
    if tokenizer is not None:
        ids = {
            name: getattr(tokenizer, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        if recipe.task == "seq2seq":
            ids["decoder_start_token_id"] = tokenizer.pad_token_id  # as T5 has it
        sizes = {**{k: v for k, v in ids.items() if v is not None}, **sizes}
    try:
        config = AutoConfig.for_model(kind, **sizes, **settings)
    except ValueError as failure:
        raise RecipeError(
            f"transformers has no model type `{kind}`",
            where=Where(key="model.architecture.model_type"),
        ) from failure
    vocabulary = getattr(config, "vocab_size", None)
    if tokenizer is not None and vocabulary is not None and len(tokenizer) > vocabulary:
        raise RecipeError(
            f"the tokenizer has {len(tokenizer)} entries, the model only {vocabulary}",
            where=Where(key="model.architecture.vocab_size"),
            hint=f"`--set model.architecture.vocab_size={len(tokenizer)}`",
        )
    return config


def attention(recipe: Recipe) -> str | None:
    """The attention implementation: flash-attn when it is installed on CUDA, else transformers'.

    That is SDPA, or eager for the types that have no other.

    Masked models need a mask of which tokens belong together, and flash-attn takes none.
    """
    if recipe.model.attention != "auto":
        return recipe.model.attention
    if recipe.task == "mlm":
        return None
    flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash and recipe.precision != "fp32" else None


def liger(recipe: Recipe) -> bool:
    """Return whether to use Liger kernels: if installed and on CUDA, unless the recipe decides."""
    if recipe.model.liger != "auto":
        return recipe.model.liger
    if recipe.model.tiled_mlp is True or recipe.model.tiled_loss is True:
        return False  # whose place it would take
    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
