"""The model that a run, a checkpoint, a folder or a Hub name means; exported where it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dslm.ask.call import ask
from dslm.ask.export import (
    ExportRequest,
    check_sound,
    chosen_checkpoint,
    export_request,
    held_request,
)
from dslm.errors import OptionError, Where
from dslm.files import expanded
from dslm.recipe.hub_names import HUB_NAME
from dslm.recipe.load import recipe_of_run
from dslm.run.directory import RunDirectory
from dslm.run.summary import find_runs, found_run, open_run

Tell = Callable[[str], None]
_CONFIGS = ("config.json", "adapter_config.json")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Meant:
    """A model that is meant: its folder or Hub name, and what a run says of it."""

    name: str
    run: RunDirectory | None = None
    step: int | None = None  # of the run
    base: str | None = None  # what the run was trained from; None: nothing, or no run
    trusted: bool = False  # its recipe lets it bring code


def meant(target: str, checkpoint: int | None, tell: Tell) -> Meant:
    """Find the model that is meant; a checkpoint without an exported model is exported.

    Args:
        target: a run, the folder of a checkpoint, a model folder, or a Hub name.
        checkpoint: the step of a run's checkpoint; None: the run's model, or its newest checkpoint.
        tell: told what takes long.

    Raises:
        OptionError: there is no such model or checkpoint.
    """
    path = found_run(expanded(target))
    step = _STEP.fullmatch(path.name)
    if step is not None and path.parent.name == "checkpoints" and path.is_dir():
        return _of_run(path.parent.parent, int(step[1]), tell)
    if (path / "manifest.json").is_file():
        return _of_run(path, checkpoint, tell)
    if checkpoint is not None:
        raise OptionError(
            f"`{target}` is no run, and only runs have checkpoints", where=Where(key="--checkpoint")
        )
    if _is_model(path):
        return Meant(name=str(path))
    if path.exists():
        raise OptionError(
            "is neither a run nor a model folder (config.json, adapter_config.json)",
            where=Where(file=path),
        )
    beside_runs = len(path.parts) > 1 and bool(find_runs(path.parent))
    if beside_runs or not HUB_NAME.fullmatch(target):
        open_run(path)  # says that there is none, and which are near
    return Meant(name=target)


def weights_of(target: str, tell: Tell, *, exports: bool) -> list[str]:
    """Return the overrides of a recipe that let it begin with the weights of a run.

    Args:
        target: a run, or the folder of a checkpoint, of any layout.
        tell: told what takes long.
        exports: a checkpoint without an exported model is exported.

    Raises:
        OptionError: it is neither, or it holds adapters alone.
    """
    where = Where(key="--weights-only")
    path = found_run(expanded(target))
    step = _STEP.fullmatch(path.name)
    run = path.parent.parent if step is not None else path
    if not (run / "manifest.json").is_file():
        raise OptionError(
            f"`{target}` is neither a run nor the folder of a checkpoint",
            where=where,
            hint="any other model is named by `--set model.name=FOLDER --set "
            "model.init=pretrained`",
        )
    made = run / "export" / path.name if step is not None else run / "model"
    if not exports and not any((made / name).is_file() for name in _CONFIGS):
        raise OptionError(
            "its model isn't exported yet, and a dry run writes nothing",
            where=where,
            hint=f"first `dslm export {target}`",
        )
    folder = Path(meant(target, None, tell).name).absolute()
    if not (folder / "config.json").is_file():
        raise OptionError(
            "the run trained adapters, which are no whole model",
            where=where,
            hint=f"`dslm export {run} --merge -o FOLDER`, and "
            "`--set model.name=FOLDER --set model.init=pretrained`",
        )
    # the tokenizer is the one beside the weights
    return [
        f"model.name={json.dumps(str(folder))}",
        "model.init=pretrained",
        "model.tokenizer=null",
    ]


def against(meant_first: Meant, wanted: str, tell: Tell) -> str:
    """The folder or name of the model that another one is compared with; `base`: its own base.

    Raises:
        OptionError: it has no base, or there is no such model.
    """
    if wanted != "base":
        return meant(wanted, None, tell).name
    if meant_first.base is None:
        raise OptionError(
            "only a run that was trained from another model has a base",
            where=Where(key="--against"),
            hint="name the other model: a run, a folder or a Hub name",
        )
    return meant_first.base


def _of_run(path: Path, step: int | None, tell: Tell) -> Meant:
    run = open_run(path)
    recipe = recipe_of_run(run.recipe)
    name, at = run.model, None
    if step is not None or not _is_model(run.model):
        name, at = _exported(run, step, tell)
    return Meant(
        name=str(name),
        run=run,
        step=at,
        base=recipe.model.name if recipe.model.init == "pretrained" else None,
        trusted=recipe.model.trust_remote_code,
    )


def _exported(run: RunDirectory, step: int | None, tell: Tell) -> tuple[Path, int]:
    """The folder of a checkpoint's model, exported unless it is there, and its step."""
    checkpoint = chosen_checkpoint(run, step)
    folder = run.path / "export" / f"step-{checkpoint.step}"
    if _is_model(folder):
        return folder, checkpoint.step

    def choose() -> ExportRequest:
        return export_request(
            run.path, step=step, merge=False, dtype=None, output=None, push_to_hub=None, trust=False
        )

    with ExitStack() as holds:
        request = held_request(choose, holds)
        tell(f"exporting the checkpoint of step {request.checkpoint.step}")
        check_sound(run, request.checkpoint)
        ask("dslm.worker.export", request.document(), tell)
    return request.output, request.checkpoint.step


def _is_model(folder: Path) -> bool:
    return any((folder / config).is_file() for config in _CONFIGS)
