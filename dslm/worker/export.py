"""From a ZeRO checkpoint to a model in Hugging Face format, one tensor in memory at a time."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dslm import environment
from dslm.errors import RunFailed, Where
from dslm.files import copy_folder, write_json
from dslm.recipe.load import recipe_of_run
from dslm.recipe.schema import PRINCIPAL, Recipe
from dslm.run.checkpoints import complete_checkpoints
from dslm.run.directory import RunDirectory
from dslm.worker.adapters import (
    FILE,
    WEIGHTS,
    adapter_config,
    adapters_of,
    for_the_whole_model,
)
from dslm.worker.answer import Tell, answer
from dslm.worker.checkpoint import DESCRIPTION
from dslm.worker.data.records import first_line
from dslm.worker.hub import OUT_OF_REACH, in_reach
from dslm.worker.layout.whole import WEIGHT
from dslm.worker.model_card import model_card
from dslm.worker.number_formats import DTYPES
from dslm.worker.portable import BUFFERS, PORTABLE, Tensors
from dslm.worker.tensor_files import type_in_file, write_safetensors
from dslm.worker.zero_tensors import StoredTensor, stored_tensors

_SHARD = "5GB"


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Export a checkpoint; the request is what `dslm.ask.export` makes."""
    began = time.monotonic()
    run = RunDirectory(Path(request["run"]))
    recipe = recipe_of_run(run.recipe)
    checkpoint = next(c for c in complete_checkpoints(run.checkpoints) if c.step == request["step"])
    output = Path(request["output"])
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        copy_folder(checkpoint.path / DESCRIPTION, partial)
        tensors = (
            portable_tensors(checkpoint.path)
            if checkpoint.portable
            else stored_tensors(checkpoint.path, checkpoint.layout.zero_stage)
        )
        dtype = DTYPES[request["dtype"] or recipe.precision]
        if recipe.lora is not None:
            _export_adapter(partial, tensors, dtype, recipe, merge=request["merge"], tell=tell)
        else:
            write_model(partial, tensors, dtype, tell)
        adapters = recipe.lora is not None and not request["merge"]
        card = model_card(run, checkpoint.step, adapters=adapters)
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.replace(output)
    except OSError as failure:
        raise RunFailed(
            f"the model could not be written: {failure.strerror or failure}",
            where=Where(file=output),
        ) from failure
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.monotonic() - began
    if request["push_to_hub"]:
        tell(f"uploading to {request['push_to_hub']}")
        _push(output, request["push_to_hub"], tell)
    return {
        "output": str(output),
        "step": checkpoint.step,
        "seconds": round(seconds, 3),
        "parameters": sum(_parameters(file) for file in output.glob("*.safetensors")),
        "bytes": sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
    }


def portable_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """Return the trained tensors and the buffers of a portable checkpoint, by name."""
    found = {}
    for key in (WEIGHT, BUFFERS):
        for name, tensor in Tensors(checkpoint / PORTABLE / key).mapped():
            found[name] = StoredTensor(tensor.shape, tensor.dtype, (tensor,))
    return found


def write_model(
    folder: Path, tensors: dict[str, StoredTensor], dtype: torch.dtype, tell: Tell
) -> None:
    """Write safetensors files, and their index when there are several, in transformers' naming."""
    shapes = {
        name: torch.empty(tensor.shape, dtype=type_in_file(tensor, dtype), device="meta")
        for name, tensor in tensors.items()
    }
    plan = split_torch_state_dict_into_shards(
        shapes, max_shard_size=_SHARD, filename_pattern="model{suffix}.safetensors"
    )
    for number, (file, names) in enumerate(plan.filename_to_tensors.items(), 1):
        tell(f"writing file {number} of {len(plan.filename_to_tensors)}")
        with (folder / file).open("wb") as stream:
            write_safetensors(stream, {name: tensors[name] for name in names}, dtype)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})


def _export_adapter(
    folder: Path,
    tensors: dict[str, StoredTensor],
    dtype: torch.dtype,
    recipe: Recipe,
    *,
    merge: bool,
    tell: Tell,
) -> None:
    """Write the adapters as peft names them; merged, a whole model instead."""
    config = adapter_config(recipe)
    with (folder / WEIGHTS).open("wb") as stream:
        write_safetensors(stream, adapters_of(tensors), dtype)
    if recipe.lora is not None and recipe.lora.init in PRINCIPAL:
        tell("taking the beginning of the adapters off them")
        _for_the_whole_model(folder, recipe, config)
    if not merge:
        (folder / "config.json").unlink()  # of the whole model, which isn't here
        return
    tell("merging the adapters into the model")
    import transformers
    from peft import PeftModel
    from transformers import AutoConfig

    from dslm.worker.tasks import task_of

    factory = getattr(transformers, task_of(recipe).auto_class)
    base = factory.from_pretrained(
        recipe.model.name,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        # with the labels of the run
        config=AutoConfig.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code),
        ignore_mismatched_sizes=True,  # a head of other labels is among the adapters
        dtype=dtype,
    )
    # not the folder's own config: peft imports modules that an `adapter_config.json` names
    adapters = PeftModel.from_pretrained(base, folder, config=config)
    merged = adapters.merge_and_unload()
    for file in folder.glob("adapter_*"):
        file.unlink()
    merged.save_pretrained(folder)


def _for_the_whole_model(folder: Path, recipe: Recipe, config: Any) -> None:
    """Make adapters that began as a part of the model ones for the model as it is."""
    import transformers
    from peft import get_peft_model

    from dslm.worker.tasks import task_of

    base = getattr(transformers, task_of(recipe).auto_class).from_pretrained(
        recipe.model.name,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        dtype=DTYPES[recipe.precision],  # as it was when they began
    )
    begun = get_peft_model(base, copy.deepcopy(config), autocast_adapter_dtype=False)
    tensors = for_the_whole_model(
        load_file(folder / WEIGHTS), adapters_of(begun.state_dict()), config
    )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    new = config.to_dict()
    same = ("r", "lora_alpha", "init_lora_weights", "rank_pattern", "alpha_pattern")
    write_json(folder / FILE, {**found, **{name: new[name] for name in same}})


def _parameters(file: Path) -> int:
    """Count the parameters in a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - it is no dictionary


def _push(folder: Path, repository: str, tell: Tell) -> None:
    from huggingface_hub import HfApi

    where = f"the model is written, but its upload to `{repository}` failed"
    if not os.environ.get(environment.HUB_OFFLINE) and not in_reach(tell):
        raise RunFailed(
            f"{where}: {OUT_OF_REACH}",
            where=Where(file=folder),
            hint=f"with a network: `hf upload {repository} {folder}`",
        )
    try:
        HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(folder_path=folder, repo_id=repository)
    except Exception as failure:
        raise RunFailed(
            f"{where}: {first_line(failure)}",
            where=Where(file=folder),
            hint=f"is `hf auth login` done? `hf upload {repository} {folder}` tries again",
        ) from failure


if __name__ == "__main__":
    answer(work)
