"""What `dslm export` asks the worker for, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from dslm.errors import OptionError, Where, did_you_mean
from dslm.recipe.load import read_resolved
from dslm.recipe.schema import Recipe
from dslm.run.checkpoints import complete_checkpoints
from dslm.run.summary import open_run

_DTYPES = get_args(Recipe.model_fields["precision"].annotation)


def export_request(
    path: Path,
    *,
    step: int | None,
    merge: bool,
    dtype: str | None,
    output: Path | None,
    push_to_hub: str | None,
) -> dict[str, Any]:
    """The request to `dslm.worker.export`.

    Raises:
        OptionError: there is no such run or checkpoint, or an option is wrong.
    """
    run = open_run(path)
    recipe = read_resolved(run.recipe)
    steps = [checkpoint.step for checkpoint in complete_checkpoints(run.checkpoints)]
    if not steps:
        raise OptionError("has no complete checkpoint", where=Where(file=path))
    if step is not None and step not in steps:
        raise OptionError(
            f"has no complete checkpoint of step {step}",
            where=Where(file=path),
            hint=f"there are: {', '.join(map(str, steps))}",
        )
    chosen = steps[-1] if step is None else step
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
    target = (output or run.path / "export" / f"step-{chosen}").absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionError(
            "is there already", where=Where(file=target), hint="choose another with `-o DIR`"
        )
    return {
        "run": str(run.path),
        "step": chosen,
        "merge": merge,
        "dtype": dtype,
        "output": str(target),
        "push_to_hub": push_to_hub,
    }
