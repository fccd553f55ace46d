"""Low-rank adapters on a model, and the model beside them in few bits.

A recipe in, peft's configs and models out. Knows no partitioning and no training.
"""

from __future__ import annotations

import copy
import json
import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from dslm.errors import InputError, RecipeError, Where
from dslm.files import expanded, is_folder
from dslm.recipe.schema import PRINCIPAL, Recipe
from dslm.worker.adapter_targets import ALL
from dslm.worker.data.records import first_line
from dslm.worker.number_formats import DTYPES

FILE = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# models whose scan takes the matrix behind it beside its module; peft refuses adapters there
# at `_check_lora_target_modules_mamba`, peft/tuners/tuners_utils.py
_SCANNING = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_OF_A_SCAN = "out_proj"
_CASTS = {"autocast_adapter_dtype": False}  # DeepSpeed keeps the fp32 copies; stage 3 casts none
TASK_TYPES = {  # peft's
    **dict.fromkeys(("pretrain", "sft", "dpo", "orpo", "kto", "grpo", "sequence"), "CAUSAL_LM"),
    "seq2seq": "SEQ_2_SEQ_LM",
    "classify": "SEQ_CLS",
    "reward": "SEQ_CLS",
}
Tensors = dict[str, torch.Tensor]
T = TypeVar("T")


def quantized(recipe: Recipe) -> dict[str, Any]:
    """Return what loads a model in few bits; nothing where it is loaded as it is.

    4 bits as in QLoRA (arXiv 2305.14314, section 3): NormalFloat, and scales that are quantised
    too. They are stored in the training's own type, so that ZeRO partitions them like the rest.
    """
    if recipe.quantize is None:
        return {}
    from transformers import BitsAndBytesConfig

    dtype = DTYPES[recipe.precision]
    if recipe.quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": four}


def keep_packing(model: PreTrainedModel) -> None:
    """Let a CPU compute with the matrices of a model in 4 bits as they are stored.

    Where it has instructions for bf16, an evaluation would pack them in another way, which no
    gradient comes through (bitsandbytes/nn/modules.py, Linear4bit.forward).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@contextmanager
def as_they_are(model: torch.nn.Module) -> Iterator[None]:
    """Leave the trained parameters of a model in few bits in the recipe's number format.

    TRL's trainers make bf16 of them when they are made, whatever the training's format is.
    """
    kept = {}
    if getattr(model, "quantization_method", None) is not None:
        kept = {parameter: parameter.data for parameter in model.parameters()}
        kept = {parameter: data for parameter, data in kept.items() if parameter.requires_grad}
    yield
    for parameter, data in kept.items():
        parameter.data = data


def with_lora(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Freeze the model and put trained adapters on its linear layers."""
    from peft import PeftModel

    lora = recipe.lora
    if lora is None:
        return model
    if recipe.model.activation_checkpointing:
        model.enable_input_require_grads()
    config = adapter_config(recipe)
    if lora.adapter is not None:
        folder = expanded(lora.adapter)
        try:
            loaded: PreTrainedModel = PeftModel.from_pretrained(
                model, str(folder), config=config, is_trainable=True, **_CASTS
            )
        except RuntimeError as failure:  # of another width
            first, _, rest = str(failure).partition("\n")
            raise RecipeError(
                f"the adapters in `{folder}` are another model's: {rest.strip() or first}",
                where=Where(key="lora.adapter"),
                hint=f"{FILE} in that folder names the model that they are for",
            ) from failure
        _check_all_there(folder, adapters_of(loaded.state_dict()))
        _name_base(loaded, recipe)
        return loaded
    made = put_adapters(model, config)
    _name_base(made, recipe)
    if lora.init in PRINCIPAL:
        made.initial_adapters = {  # type: ignore[assignment]
            name: tensor.detach().clone() for name, tensor in adapters_of(made.state_dict()).items()
        }
    return made


def _name_base(model: Any, recipe: Recipe) -> None:
    """Let adapters name a base that is a folder by its whole path: they are used from anywhere."""
    folder = expanded(recipe.model.name or "")
    if recipe.model.init == "pretrained" and is_folder(folder):
        for config in model.peft_config.values():
            config.base_model_name_or_path = str(folder.absolute())


def put_adapters(model: PreTrainedModel, config: Any, *, init: str = "default") -> PreTrainedModel:
    """Freeze a model and put new adapters on it, on the parameters of experts without dropout.

    peft puts adapters on experts whose matrices are one parameter as well, and refuses each option
    that isn't for those (peft/tuners/lora/layer.py, ParamWrapper). Dropout it refuses for all.

    Args:
        model: which one.
        config: peft's; what becomes of its dropout is written back.
        init: how they begin in the ranks, where peft is told otherwise here.

    Raises:
        RecipeError: an option that adapters on experts can't have, or modules that can have none.
    """
    from peft import get_peft_model
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    dropout, config.lora_dropout = config.lora_dropout, 0.0
    if config.target_modules == ALL and model.config.model_type in _SCANNING:
        config.exclude_modules = _also(config.exclude_modules, _OF_A_SCAN)
    try:
        made: PreTrainedModel = get_peft_model(model, config, **_CASTS)
    except (AttributeError, TypeError, ValueError) as failure:
        frames = traceback.walk_tb(failure.__traceback__)
        if any(isinstance(frame.f_locals.get("self"), ParamWrapper) for frame, _ in frames):
            key, value = ("dora", "false") if config.use_dora else ("init", "default")
            raise _not_for_experts(key, value) from failure
        raise RecipeError(
            f"peft can't put these adapters on a model of type `{model.config.model_type}`: "
            f"{first_line(failure)}",
            where=Where(key="lora.target_modules"),
            hint="choose its layers: `lora.target_modules`, `lora.exclude`, `lora.modules_to_save`",
        ) from failure
    layers = [module for module in made.modules() if isinstance(module, LoraLayer)]
    others = [layer for layer in layers if not isinstance(layer, ParamWrapper)]
    if len(others) == len(layers):
        config.lora_dropout = dropout
    elif init in PRINCIPAL:
        raise _not_for_experts("init", "default")
    if dropout:
        for layer in others:
            for name in layer.lora_A:
                layer.lora_dropout[name] = torch.nn.Dropout(dropout)
    return made


def _also(excluded: Any, name: str) -> Any:
    """What is excluded, by names or by a regular expression, and a module of this name."""
    if isinstance(excluded, str):
        return rf"({excluded})|(.*\.)?{name}"
    return {*(excluded or ()), name}


def _not_for_experts(key: str, value: str) -> RecipeError:
    return RecipeError(
        f"adapters on experts can't have `lora.{key}`: their matrices are one parameter",
        where=Where(key=f"lora.{key}"),
        hint=f"`--set lora.{key}={value}`, or name other `lora.target_modules`",
    )


def _check_all_there(folder: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Check that a folder holds all adapters of a model and no others: peft only warns.

    Raises:
        RecipeError: they are another model's.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        found = set(tensors.keys())
    wrong = sorted(found ^ set(wanted))
    if wrong:
        what = "has no" if wrong[0] in wanted else "has"
        raise RecipeError(
            f"the adapters in `{folder}` are another model's: it {what} `{wrong[0]}`"
            + (f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""),
            where=Where(key="lora.adapter"),
        )


def adapter_config(recipe: Recipe) -> Any:
    """Build peft's config of a recipe's adapters; that of existing ones is read from their folder.

    Raises:
        InputError: the folder's config can't be read.
    """
    from peft import LoraConfig

    lora = recipe.lora
    if lora is None:
        raise ValueError("the recipe has no adapters")
    if lora.adapter is not None:
        return config_in(expanded(lora.adapter))
    saved = [*lora.modules_to_save, *(["classifier"] if recipe.task == "vision" else [])]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=lora.exclude,
        task_type=TASK_TYPES.get(recipe.task),
        modules_to_save=saved or None,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        init_lora_weights=True if lora.init == "default" else lora.init,
    )


def config_in(folder: Path) -> Any:
    """Return peft's config of a folder's adapters, without what could import other modules.

    Raises:
        InputError: it can't be read, or is of no low-rank adapters.
    """
    from peft import LoraConfig

    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise InputError(f"can't be read: {failure}", where=Where(file=file)) from failure
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise InputError("is not a config of low-rank adapters", where=Where(file=file))
    known = {k: v for k, v in found.items() if k in LoraConfig.__dataclass_fields__}
    return LoraConfig(**{**known, "auto_mapping": None, "inference_mode": False})


def adapters_of(state: Mapping[str, T]) -> dict[str, T]:
    """The tensors of adapters in a model's state, as peft names them in a file."""
    return {
        _name_in_a_file(name): tensor
        for name, tensor in state.items()
        if "lora_" in name or ".modules_to_save." in name
    }


def _name_in_a_file(name: str) -> str:
    own = name.replace(".modules_to_save.default", "").replace(".default", "")
    # peft/utils/save_and_load.py: a module in the model, a bare parameter in a file
    return own.removesuffix(".weight") if own.endswith("lora_magnitude_vector.weight") else own


def for_the_whole_model(adapters: Tensors, initial: Tensors, config: Any) -> Tensors:
    """Adapters for the model as it is, of adapters that began as a part of it; changes `config`.

    The model that was trained is W - s·B0·A0 + s·B·A. With twice the rank that is W + s·B'·A',
    B' = [B, -B0] and A' = [A; A0].

    Source: peft/tuners/lora/model.py, subtract_mutated_init, which does it from a saved beginning.
    """
    joined = {}
    for name, tensor in adapters.items():
        if "lora_A" in name:
            joined[name] = torch.cat([tensor, initial[name].to(tensor)], dim=0)
        elif "lora_B" in name:
            joined[name] = torch.cat([tensor, -initial[name].to(tensor)], dim=1)
        else:
            joined[name] = tensor
    factor = math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= factor
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: factor * a for name, a in config.alpha_pattern.items()}
    return joined


def save_adapters(model: Any, state: Tensors, folder: Path) -> None:
    """Write a model's adapters as peft does, for the model as it is on the Hub or in its folder."""
    from safetensors.torch import save_file

    initial = getattr(model, "initial_adapters", None)
    if initial is None:
        # not `ref`, which TRL's trainers put beside them: the adapters as they began
        chosen = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(folder, state_dict=state, **chosen)
        return
    config = copy.deepcopy(model.peft_config["default"])
    tensors = for_the_whole_model(adapters_of(state), initial, config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / WEIGHTS)
    config.inference_mode = True
    config.save_pretrained(folder)
