"""Facts of transformers and torch about recipes, as data: `transformers.json` of the checks.

Model types with the tasks each can do, the names and types of its sizes, and which attention its
code has; activations; the arguments of the Trainers; torch's optimizers. Written once per version
by `make docs`, so that a recipe is judged on the command line without importing any of them (five
seconds). The file holds a digest of itself, of this module and of the versions: `make check`
compares that, and makes the file anew only where it differs.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib
import inspect
import json
import logging
import sys
import types
import typing
from collections.abc import Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("transformers", "trl", "torch")
FILE = Path(__file__).parents[1] / "decide" / "checks" / "transformers.json"

# The auto class of a kind of head: the mapping of transformers that lists its model types.
_HEADS = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
_CODE = {  # what a type can do, by what its code says
    "sdpa": "_supports_sdpa = True",
    "flash_attention_2": "_supports_flash_attn = True",
    "activation_checkpointing": "supports_gradient_checkpointing = True",
    "attention by name": "ALL_ATTENTION_FUNCTIONS.get_interface(",
    "heads divide": ") is not a multiple of the number of attention",
}
_SIMPLE = {int: "int", float: "float", bool: "bool", str: "str", list: "list", dict: "dict"}


def digest(facts: dict[str, Any]) -> str:
    """Return a digest of the facts, this module and the versions."""
    content = {key: value for key, value in facts.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True) + Path(__file__).read_text(encoding="utf-8")
    text += " ".join(version(package).partition("+")[0] for package in PACKAGES)
    return hashlib.sha256(text.encode()).hexdigest()


def current() -> str | None:
    """Return the file as it is, if it is what this module would make; else None."""
    try:
        text = FILE.read_text(encoding="utf-8")
        facts = json.loads(text)
    except (OSError, ValueError):
        return None
    return text if facts.get("digest") == digest(facts) else None


def table() -> str:
    """Return the whole file."""
    import torch
    import transformers
    import trl
    from transformers.activations import ACT2CLS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from trl.experimental.orpo import ORPOConfig

    transformers.logging.set_verbosity_error()
    optimizers = [name for name in dir(torch.optim) if inspect.isclass(getattr(torch.optim, name))]
    facts: dict[str, Any] = {
        "versions": {package: version(package).partition("+")[0] for package in PACKAGES},
        "activations": sorted(ACT2CLS),
        "optimizers": [name for name in optimizers if name != "Optimizer"],
        "rope_types": ["default", *sorted(ROPE_INIT_FUNCTIONS)],
        "trackers": sorted(INTEGRATION_TO_CALLBACK),
        "arguments": {
            name: _fields(kind)
            for name, kind in (
                ("transformers.TrainingArguments", transformers.TrainingArguments),
                ("trl.SFTConfig", trl.SFTConfig),
                ("trl.DPOConfig", trl.DPOConfig),
                ("trl.experimental.orpo.ORPOConfig", ORPOConfig),
                ("trl.KTOConfig", trl.KTOConfig),
                ("trl.RewardConfig", trl.RewardConfig),
                ("trl.GRPOConfig", trl.GRPOConfig),
            )
        },
        "types": _types(),
    }
    facts["digest"] = digest(facts)
    lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any) -> str:
    """JSON with a line for each entry of a mapping."""
    if not isinstance(value, dict):
        return json.dumps(value)
    rows = [f"  {json.dumps(key)}: {json.dumps(below)}" for key, below in value.items()]
    return "{\n" + ",\n".join(rows) + "\n }"


def _types() -> dict[str, Any]:
    from transformers import PretrainedConfig
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    heads = {head: getattr(modeling_auto, mapping) for head, mapping in _HEADS.items()}
    common = {field.name for field in dataclasses.fields(PretrainedConfig)}
    found: dict[str, Any] = {}
    for name in sorted(CONFIG_MAPPING_NAMES):
        can = [head for head, names in heads.items() if name in names]
        found[name] = {"heads": can}
        if can:
            config = CONFIG_MAPPING[name]
            found[name] |= {
                "code": [*_code_of(name), *_plan_of(config)],
                "names": dict(config.attribute_map),
                "fields": _fields(config, without=common),
            }
    return found


def _plan_of(config: Any) -> list[str]:
    """`shared layers`: transformers says how ranks share them, in words that DeepSpeed has."""
    from deepspeed.module_inject.tp_plan_converter import SUPPORTED_STYLES

    plan = getattr(config, "base_model_tp_plan", None) or {}
    known = all(str(style).lower() in SUPPORTED_STYLES for style in plan.values())
    return ["shared layers"] if plan and known else []


def _code_of(name: str) -> list[str]:
    """What the module with the type's model says that it can do; read, not imported."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    package = importlib.import_module(
        f"transformers.models.{model_type_to_module_name(name)}"
    ).__path__[0]
    files = sorted(Path(package).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return [what for what, sign in _CODE.items() if sign in text]


def _fields(kind: type, without: Set[str] = frozenset()) -> dict[str, str]:
    """The names of a dataclass's fields by their type: `int`, `float|none`, …, `any`."""
    hints = _hints(kind)
    found: dict[str, list[str]] = {}
    for field in dataclasses.fields(kind):
        if field.init and field.name not in without:
            found.setdefault(_said(hints.get(field.name, field.type)), []).append(field.name)
    return {said: " ".join(sorted(names)) for said, names in sorted(found.items())}


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):
        return {}


def _said(type_: Any) -> str:
    """A type in words that JSON and Python share; `any` for what a recipe can't be held to."""
    if type_ is type(None):
        return "none"
    if type_ in _SIMPLE:
        return _SIMPLE[type_]
    origin = typing.get_origin(type_)
    if origin in (list, tuple):
        return "list"
    if origin is dict or (inspect.isclass(type_) and issubclass(type_, dict)):
        return "dict"
    if origin in (typing.Union, types.UnionType):
        parts = {part for one in typing.get_args(type_) for part in _said(one).split("|")}
        return "any" if "any" in parts else "|".join(sorted(parts))
    if inspect.isclass(type_) and issubclass(type_, enum.Enum):
        return "str"
    return "any"


if __name__ == "__main__":
    logging.disable()
    sys.stdout.write(current() or table())
