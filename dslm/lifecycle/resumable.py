"""Which run a request resumes, and whether it may: a table of what may differ between two attempts.

Reads run directories; starts and writes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dslm.codec import Json
from dslm.errors import DslmError, OptionError, Where
from dslm.files import exists, expanded
from dslm.lifecycle.request import TrainingRequest
from dslm.recipe.duration import total_steps
from dslm.recipe.schema import Duration, Recipe
from dslm.run.directory import RunDirectory
from dslm.run.history import Status, check_readable
from dslm.run.manifest import read_manifest
from dslm.run.summary import RUNS, RunSummary, find_runs, found_run, summarize

# Keys, and all below them, that may differ between two attempts of one run, and why.
MAY_DIFFER = {
    "description": "nothing reads it",
    "batch.micro_size": "the global batch stays",
    "parallel.ranks": "a checkpoint is converted",
    "parallel.zero_stage": "a checkpoint is converted",
    "parallel.tensor": "a checkpoint is converted",
    "parallel.sequence": "a checkpoint is converted",
    "parallel.expert": "a checkpoint is converted",
    "parallel.offload": "where the state lies",
    "parallel.nvme_path": "where the state lies",
    "parallel.offload_ratio": "where the state lies",
    "parallel.super_offload": "when the state is updated",
    "parallel.hpz": "where parameters lie",
    "parallel.overlap": "when ranks talk",
    "model.activation_checkpointing": "the same values, computed twice",
    "model.chunked_loss": "the same values, a part at a time",
    "model.long_context": "the same values, a part at a time",
    "model.tiled_mlp": "the same values, a part at a time",
    "model.tiled_loss": "the same values, a part at a time",
    "model.offload_activations": "where what is computed again lies",
    "model.deepcompile": "how it is executed",
    "data.workers": "who reads the samples",
    "data.sharding": "who reads which sample of a batch",
    "checkpoint": "when it is saved",
    "evaluation": "when it is looked at",
    "log": "what is written down",
    "watchdog": "when it is given up",
    "environment": "how it is executed",
}
_OUTPUT = ("-o", "--output")
_VERB = "train"  # the only one whose runs can be resumed


def run_to_resume(request: TrainingRequest) -> RunDirectory | None:
    """The run that a request resumes: the one in `output`, or with `resume` the newest of its name.

    Returns:
        None: it is a new run.

    Raises:
        OptionError: `resume` is asked for, and there is nothing to resume.
    """
    name = request.recipe.name
    if request.output is not None:
        run = run_in(found_run(request.output) if request.resume else request.output)
    else:
        run = _newest(name) if request.resume else None
    done = run is not None and summarize(run).status == Status.DONE
    if run is not None and done and not request.resume:
        run = None  # the folder is refused as that of another run
    if run is None and request.resume:
        raise OptionError(
            f"there is no unfinished run of `{name}` to resume",
            where=Where(file=request.output or RUNS, key="--resume"),
            hint="`dslm runs list` shows the runs; `-o RUN` names one",
        )
    if run is None and request.trust_checkpoint:
        raise OptionError(
            "there is no unfinished run whose checkpoint would be loaded",
            where=Where(file=request.output, key="--trust-checkpoint"),
            hint="leave it out: a new run loads none",
        )
    return run


def check_resumable(run: RunDirectory, old: Recipe, new: Recipe) -> list[str]:
    """Check that a run may be resumed with a recipe; what people should know of it.

    Raises:
        OptionError: it was made with another recipe, as far as the mathematics goes; or it is done.
    """
    different = recipe_difference(old, new)
    if different:
        lines = "; ".join(f"`{key}` was {was!r}, is {now!r}" for key, was, now in different[:5])
        raise OptionError(
            f"holds another run, made with another recipe: {lines}",
            where=Where(file=run.path),
            hint="resume with the same recipe, or start a new run in another folder",
        )
    if old.duration != new.duration:
        return [_longer(run, old, new)]
    if summarize(run).status == Status.DONE:
        raise OptionError(
            "the run is done",
            where=Where(file=run.path, key="--resume"),
            hint=f"make it longer: `--set {_duration(new.duration)}` and more",
        )
    return []


def recipe_difference(old: Recipe, new: Recipe) -> list[tuple[str, Json, Json]]:
    """Keys in which two recipes would train differently: key, old value, new value."""
    found: list[tuple[str, Json, Json]] = []

    def compare(key: str, left: Json, right: Json) -> None:
        if key in MAY_DIFFER or key == "duration" or _same(left, right):
            return
        if isinstance(left, dict) and isinstance(right, dict):
            for name in [*left, *(n for n in right if n not in left)]:
                compare(f"{key}.{name}" if key else name, left.get(name), right.get(name))
        else:
            found.append((key, left, right))

    compare("", old.model_dump(mode="json"), new.model_dump(mode="json"))
    return found


def _same(left: Json, right: Json) -> bool:
    """Return whether two values are equal, or two names of one file or folder, at any depth."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if left == right or not (isinstance(left, str) and isinstance(right, str)):
        return left == right
    paths = expanded(left), expanded(right)
    return all(map(exists, paths)) and paths[0].samefile(paths[1])


def resume_command(command: Sequence[str], run: Path) -> str:
    """The command line that resumes a run: the one that made it, with the run and `--resume`."""
    words = ["dslm", *command[1:]]
    if not any(word in _OUTPUT or word.startswith("--output=") for word in words):
        words += ["-o", str(run)]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def command_to_resume(summary: RunSummary) -> str | None:
    """The command line that resumes a run that isn't done; None where nothing can."""
    run = RunDirectory(Path(summary.path))
    if summary.status == Status.DONE or summary.owner is not None:
        return None
    try:
        command = read_manifest(run).command
    except DslmError:
        return None  # damaged: the summary names the problem
    verb = next((word for word in command[1:] if not word.startswith("-")), "")
    return resume_command(command, run.path) if verb == _VERB and run_in(run.path) else None


def run_in(folder: Path) -> RunDirectory | None:
    """Return the run in a folder that has all that an attempt needs; None: there is none.

    Raises:
        OptionError: it is of a later format.
    """
    run = RunDirectory(folder.absolute())
    if not all(file.is_file() for file in (run.manifest, run.recipe, run.ds_config)):
        return None
    check_readable(run)
    return run


def _newest(name: str) -> RunDirectory | None:
    """The newest run of a recipe below `runs/` that is neither done nor running."""
    for run in reversed(find_runs(RUNS)):
        try:
            summary, manifest = summarize(run), read_manifest(run)
        except DslmError:
            continue  # damaged, or of a later version: `dslm runs list` says so
        over = summary.status == Status.DONE or summary.owner is not None
        if manifest.name == name and not over and run_in(run.path) is not None:
            return run
    return None


def _longer(run: RunDirectory, old: Recipe, new: Recipe) -> str:
    """Describe the effect of a longer duration.

    Raises:
        OptionError: it is shorter, or of another unit.
    """
    before, after = _length(old.duration), _length(new.duration)
    if before[0] != after[0] or after[1] < before[1]:
        raise OptionError(
            f"the run has `{_duration(old.duration)}`, not `{_duration(new.duration)}`: a run can "
            "only be made longer",
            where=Where(file=run.path, key="duration"),
            hint=f"`--set {_duration(old.duration)}` or more",
        )
    longer = f"the run is made longer, from {_duration(old.duration)} to {after[1]:g}"
    if new.schedule.name == "constant":
        return f"{longer}; its constant learning rate stays as it is"
    steps = total_steps(new)
    ends = f"step {steps}" if steps is not None else "its new end"
    return (
        f"{longer}; the {new.schedule.name} schedule now ends at {ends}, so the learning rate is "
        "that of the longer schedule from here on"
    )


def _length(duration: Duration) -> tuple[str, float]:
    given = duration.model_dump(exclude_none=True)
    return next((unit, float(value)) for unit, value in given.items())


def _duration(duration: Duration) -> str:
    unit, value = _length(duration)
    return f"duration.{unit}={value:g}"
