"""A trained model for use: from a folder or the Hub, with adapters or without, on any device.

Knows no run: what it is given is a folder, or a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dslm.errors import InputError, Where
from dslm.recipe.hub_names import HUB_NAME, elsewhere
from dslm.worker.answer import Tell
from dslm.worker.data.records import first_line
from dslm.worker.loading import UNLOADABLE, LoadingReport

ADAPTER = "adapter_config.json"
CAUSAL = "AutoModelForCausalLM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """A model for use, under the name that people gave it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool = False  # its adapters are left out: it is the base of another one

    @contextmanager
    def ready(self) -> Iterator[PreTrainedModel]:
        """Give the model as it is to be used."""
        if self.plain:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield self.model
        else:
            yield self.model

    @property
    def device(self) -> torch.device:
        """The device where its input goes."""
        return next(self.model.parameters()).device


def load(
    name: str, tell: Tell, *, auto_class: str | None = None, trusted: bool = False, **config: Any
) -> Used:
    """Load a model, with the adapters that a folder may hold.

    Args:
        name: a model folder, a folder of adapters, or a Hub name.
        tell: told what takes long.
        auto_class: transformers' class; None: by the config, causal or text to text.
        trusted: run code that comes with the model.
        config: further entries of its config.

    Raises:
        InputError: there is no such model, it can't be loaded, or not all of it is in its files.
    """
    folder = Path(name)
    adapter = read_adapter(folder) if (folder / ADAPTER).is_file() else None
    base = str(adapter["base_model_name_or_path"]) if adapter is not None else name
    if adapter is not None and elsewhere(base) and not HUB_NAME.fullmatch(base):
        raise InputError(
            f"its adapters are for the model in `{base}`, which is not there",
            where=Where(file=folder),
            hint="put it back, or name where it is in adapter_config.json "
            "(`base_model_name_or_path`)",
        )
    tell(f"loading {base}")
    try:
        settings = AutoConfig.from_pretrained(base, trust_remote_code=trusted, **config)
        kind = auto_class or ("AutoModelForSeq2SeqLM" if settings.is_encoder_decoder else CAUSAL)
        model, found = getattr(transformers, kind).from_pretrained(
            base,
            config=settings,
            dtype="auto",
            trust_remote_code=trusted,
            ignore_mismatched_sizes=True,  # the report has them
            output_loading_info=True,
            **({"device_map": "auto"} if torch.cuda.is_available() else {}),
        )
        report = LoadingReport.of(model, found)
        if adapter is not None:
            model = with_adapter(model, folder, adapter)
        own = (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(name if own else base, trust_remote_code=trusted)
    except torch.OutOfMemoryError:
        raise
    except UNLOADABLE as failure:
        raise InputError(
            f"`{base}` can't be loaded: {first_line(failure)}",
            where=Where(file=name if folder.is_dir() else None),
            hint="a run, a folder with config.json and weights, or a Hub name",
        ) from failure
    _check_whole(base, report, adapter)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return Used(name=name, model=model.eval(), tokenizer=tokenizer)


def _check_whole(name: str, report: LoadingReport, adapter: Mapping[str, Any] | None) -> None:
    """Check that a model's files hold all of it, but for the modules that its adapters bring.

    Raises:
        InputError: the rest would be random numbers.
    """
    brought = (adapter or {}).get("modules_to_save") or ()
    patterns = [f"{before}{module}.*" for module in brought for before in ("", "*.")]
    left = report.unnamed(patterns).new
    if left:
        raise InputError(
            f"{len(left)} parameters of `{name}` are not in its files, such as `{left[0]}`: it "
            "would answer with random numbers",
            where=Where(file=name if Path(name).is_dir() else None),
            hint="is it complete, and was it trained for this task?",
        )


def read_adapter(folder: Path) -> dict[str, Any]:
    """Return the config of a folder's adapters.

    Raises:
        InputError: it can't be read, or names no base model.
    """
    file = folder / ADAPTER
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise InputError(f"can't be read: {failure}", where=Where(file=file)) from failure
    if not isinstance(found, dict) or not found.get("base_model_name_or_path"):
        raise InputError("names no base model", where=Where(file=file))
    return found


def with_adapter(
    model: PreTrainedModel, folder: Path, adapter: Mapping[str, Any]
) -> PreTrainedModel:
    """Put a folder's adapters on a model."""
    from peft import LoraConfig, PeftModel

    # `auto_mapping` names modules that peft would import
    known = {k: v for k, v in adapter.items() if k in LoraConfig.__dataclass_fields__}
    config = LoraConfig(**{**known, "auto_mapping": None, "inference_mode": True})
    found: PreTrainedModel = PeftModel.from_pretrained(model, folder, config=config)
    return found


def beside(used: Used, name: str, tell: Tell, **settings: Any) -> Used:
    """Load the model that another one is compared with: its own base needs no second copy."""
    own = getattr(used.model, "peft_config", None)
    base = next(iter(own.values())).base_model_name_or_path if own else None
    if base is not None and (name == base or Path(name).resolve() == Path(base).resolve()):
        return Used(name=name, model=used.model, tokenizer=used.tokenizer, plain=True)
    return load(name, tell, **settings)
