"""The checkpoint to resume from: which one, whether it fits the ranks there are, its conversion.

In the same layout a checkpoint is loaded as it is. For another one it is converted first to the
portable form, which knows no layout, into a folder beside it; one that has that form already is
loaded as it is into any.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dslm.errors import OptionError, RunFailed, Where
from dslm.run.checkpoints import Checkpoint, SavedLayout, newest_sound, state_folder
from dslm.run.directory import RunDirectory
from dslm.run.pickles import foreign_names

_CONVERTER = "dslm.worker.convert"
TRUST = "--trust-checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """The checkpoint that an attempt starts from: its path, and whether it was converted."""

    path: str
    step: int
    converted: bool
    seconds: float | None = None  # that a conversion took


def resume_point(
    run: RunDirectory,
    *,
    layout: SavedLayout,
    log: Path,
    trust: bool = False,
    report: Callable[[str], None] = lambda detail: None,
) -> ResumePoint | None:
    """Return the newest sound checkpoint, converted when it has to be; None: there is none.

    Args:
        run: the run to resume.
        layout: how the ranks that there are now share the work.
        log: what the converter prints goes there.
        trust: a checkpoint may hold more than tensors, which runs code when it is loaded.
        report: takes what people should know: checkpoints that can't be used, a conversion.

    Raises:
        OptionError: it holds more than tensors.
        RunFailed: the conversion failed.
    """
    checkpoint, problems = newest_sound(run.checkpoints)
    for problem in problems:
        report(problem)
    if checkpoint is None:
        report("there is no checkpoint to resume from: the run starts over")
        return None
    if not trust:
        check_harmless(checkpoint)
    # without ZeRO every rank holds the whole state: any number of ranks can load it
    before = checkpoint.layout
    plain = {before.zero_stage, layout.zero_stage} == {0} and before == replace(
        layout, world_size=before.world_size
    )
    fits = checkpoint.portable or before == layout or plain
    path, seconds = checkpoint.path, None
    if not fits:
        report(f"converting step {checkpoint.step} from {before} to {layout}")
        path = run.checkpoints / f".portable-{checkpoint.step}"
        began = time.monotonic()
        convert(checkpoint, path, log, trust=trust)
        seconds = time.monotonic() - began
    return ResumePoint(
        path=str(path.relative_to(run.path)),
        step=checkpoint.step,
        converted=not fits,
        seconds=seconds,
    )


def check_harmless(checkpoint: Checkpoint) -> None:
    """Check that loading a checkpoint makes tensors and plain values, and runs nothing.

    The ranks and the converter would refuse it too, whatever happens to the files until then; this
    says so before anything starts.

    Raises:
        OptionError: it doesn't, or the states are outside of it.
    """
    found = foreign_names(checkpoint.path / name for name in checkpoint.files)
    for file, names in found.items():
        raise OptionError(
            f"holds more than tensors: loading it would run `{'`, `'.join(names[:3])}`",
            where=Where(file=file),
            hint="leave it alone unless you know who wrote it; "
            f"`{TRUST}` loads it as it is, and runs its code",
        )
    if checkpoint.portable:
        return
    try:
        folder = state_folder(checkpoint.path)
    except (OSError, ValueError) as failure:
        raise OptionError(str(failure), where=Where(file=checkpoint.path)) from failure
    if not any(name.startswith(f"{folder.name}/") for name in checkpoint.files):
        raise OptionError("holds no DeepSpeed states", where=Where(file=checkpoint.path))


def convert(checkpoint: Checkpoint, folder: Path, log: Path, *, trust: bool = False) -> None:
    """Convert a checkpoint to the portable form; the folder appears whole.

    It is made anew each time, and goes when the next checkpoint is saved.

    Raises:
        RunFailed: the conversion failed.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    argv = [
        sys.executable, "-P", "-m", _CONVERTER, *(["--trust"] if trust else []),
        str(checkpoint.path), str(checkpoint.layout.zero_stage), str(partial),
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        done = subprocess.run(argv, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"the checkpoint of step {checkpoint.step} could not be converted",
            where=Where(file=log),
            hint=f"resume as it was written, with {checkpoint.layout}: that needs no conversion",
        )
    partial.replace(folder)
