"""Requests of `dslm export` to the worker, checked before it starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dslm.codec import Json
from dslm.errors import OptionError, Where, did_you_mean
from dslm.recipe.load import recipe_of_run
from dslm.recipe.schema import Recipe
from dslm.run.checkpoints import Checkpoint, complete_checkpoints, damaged_files, in_use
from dslm.run.directory import RunDirectory
from dslm.run.summary import open_run

_CHOICES = 5  # a run that trains removes checkpoints, but not so many while one is opened
_DTYPES = get_args(Recipe.model_fields["precision"].annotation)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """An export that was checked: everything is there, and nothing is in its way."""

    run: RunDirectory
    checkpoint: Checkpoint
    merge: bool
    dtype: str | None
    output: Path
    push_to_hub: str | None

    def document(self) -> dict[str, Json]:
        """Return the request as the worker reads it."""
        return {
            "run": str(self.run.path),
            "step": self.checkpoint.step,
            "merge": self.merge,
            "dtype": self.dtype,
            "output": str(self.output),
            "push_to_hub": self.push_to_hub,
        }


def export_request(
    path: Path,
    *,
    step: int | None,
    merge: bool,
    dtype: str | None,
    output: Path | None,
    push_to_hub: str | None,
    trust: bool,
) -> ExportRequest:
    """Build the request for `dslm.worker.export`.

    Raises:
        OptionError: there is no such run or checkpoint, or an option is wrong.
    """
    run = open_run(path)
    recipe = recipe_of_run(run.recipe)
    checkpoint = chosen_checkpoint(run, step)
    if dtype is not None and dtype not in _DTYPES:
        raise OptionError(
            f"there is no number format `{dtype}`",
            where=Where(key="--dtype"),
            hint=did_you_mean(dtype, _DTYPES) or f"there are: {', '.join(_DTYPES)}",
        )
    if merge and recipe.lora is None:
        raise OptionError(
            "there are no adapters to merge: the run trained all parameters",
            where=Where(key="--merge"),
        )
    if merge and recipe.model.trust_remote_code and not trust:
        raise OptionError(
            f"merging loads `{recipe.model.name}`, and the run's recipe lets that bring code",
            where=Where(file=run.recipe, key="model.trust_remote_code"),
            hint="if the run is yours and you trust that model: `--trust-checkpoint` runs its code",
        )
    if trust and not (merge and recipe.model.trust_remote_code):
        raise OptionError(
            "nothing in this export could run code",
            where=Where(key="--trust-checkpoint"),
            hint="it is for `--merge` with a base model of `trust_remote_code`: leave it out",
        )
    target = (output or run.path / "export" / f"step-{checkpoint.step}").absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionError(
            "already exists", where=Where(file=target), hint="choose another with `-o DIR`"
        )
    return ExportRequest(
        run=run,
        checkpoint=checkpoint,
        merge=merge,
        dtype=dtype,
        output=target,
        push_to_hub=push_to_hub,
    )


def held_request(choose: Callable[[], ExportRequest], holds: ExitStack) -> ExportRequest:
    """Build a request whose checkpoint stays while `holds` is open.

    A run that trains may remove the newest checkpoint before it is held: then it is chosen anew.

    Raises:
        OptionError: as in `export_request`, or the checkpoint can't be read.
    """
    for left in reversed(range(_CHOICES)):
        request = choose()
        try:
            holds.enter_context(in_use(request.checkpoint))
        except OptionError:
            if not left or request.checkpoint.path.exists():
                raise
        else:
            return request
    raise AssertionError("unreachable")


def chosen_checkpoint(run: RunDirectory, step: int | None) -> Checkpoint:
    """Return the complete checkpoint of a step, or the newest.

    Raises:
        OptionError: there is none.
    """
    complete = {found.step: found for found in complete_checkpoints(run.checkpoints)}
    if not complete:
        raise OptionError("has no complete checkpoint", where=Where(file=run.path))
    if step is not None and step not in complete:
        raise OptionError(
            f"has no complete checkpoint of step {step}",
            where=Where(file=run.path),
            hint=f"there are: {', '.join(map(str, complete))}",
        )
    return complete[max(complete) if step is None else step]


def check_sound(run: RunDirectory, checkpoint: Checkpoint) -> None:
    """Check that every file of a checkpoint is as it was written; reads every byte.

    Raises:
        OptionError: some are not; names them, and an older checkpoint that is sound.
    """
    wrong = damaged_files(checkpoint)
    if not wrong:
        return
    older = [c for c in complete_checkpoints(run.checkpoints) if c.step < checkpoint.step]
    sound = next((c.step for c in reversed(older) if not damaged_files(c)), None)
    way = f"`--checkpoint {sound}` is sound; " if sound is not None else ""
    raise OptionError(
        f"the checkpoint of step {checkpoint.step} is damaged: {', '.join(wrong)}",
        where=Where(file=checkpoint.path),
        hint=f"{way}`--skip-verify` exports it as it is: some of its weights may be wrong numbers",
    )
