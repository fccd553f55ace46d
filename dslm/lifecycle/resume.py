"""The checkpoint to resume from: which one, whether it fits the ranks there are, its conversion.

At the same world size and stage a checkpoint is loaded as it is. At another one it is converted
to DeepSpeed's universal format first, by DeepSpeed's own converter, into a folder beside it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dslm.errors import OptionError, RunFailed, Where
from dslm.run.checkpoints import Checkpoint, newest_sound, state_folder
from dslm.run.directory import RunDirectory
from dslm.run.pickles import foreign_names

_TRAINER_STATE = "trainer_state.json"
_CONVERTER = "dslm.worker.convert"
TRUST = "--trust-checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """The checkpoint that an attempt starts from: its path, and whether it was converted."""

    path: str
    step: int
    universal: bool
    seconds: float | None = None  # that a conversion took


def resume_point(
    run: RunDirectory,
    *,
    world_size: int,
    zero_stage: int,
    log: Path,
    trust: bool = False,
    report: Callable[[str], None] = lambda detail: None,
) -> ResumePoint | None:
    """Return the newest sound checkpoint, converted when it has to be; None: there is none.

    Args:
        run: the run to resume.
        world_size: ranks there are now.
        zero_stage: stage they use.
        log: what the converter prints goes there.
        trust: a checkpoint may hold more than tensors, which runs code when it is loaded.
        report: takes what people should know: checkpoints that can't be used, a conversion.

    Raises:
        OptionError: no conversion leads from the checkpoint's stage to this one, or it holds more
            than tensors.
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
    same = (checkpoint.world_size, checkpoint.zero_stage) == (world_size, zero_stage)
    # without ZeRO every rank holds the whole state: any number of ranks can load it
    plain = checkpoint.zero_stage == zero_stage == 0
    path, seconds = checkpoint.path, None
    if not (same or plain):
        _check_stages(run, checkpoint.zero_stage, zero_stage)
        report(
            f"converting step {checkpoint.step} from {checkpoint.world_size} ranks, "
            f"stage {checkpoint.zero_stage}, to {world_size} ranks, stage {zero_stage}"
        )
        path = run.checkpoints / f".universal-{checkpoint.step}"
        began = time.monotonic()
        convert(checkpoint, path, log, trust=trust)
        seconds = time.monotonic() - began
    return ResumePoint(
        path=str(path.relative_to(run.path)),
        step=checkpoint.step,
        universal=not (same or plain),
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
    try:
        folder = state_folder(checkpoint.path)
    except (OSError, ValueError) as failure:
        raise OptionError(str(failure), where=Where(file=checkpoint.path)) from failure
    if not any(name.startswith(f"{folder.name}/") for name in checkpoint.files):
        raise OptionError("holds no DeepSpeed states", where=Where(file=checkpoint.path))


def convert(checkpoint: Checkpoint, folder: Path, log: Path, *, trust: bool = False) -> None:
    """Convert a checkpoint to DeepSpeed's universal format; the folder appears whole.

    It is made anew each time, and goes when the next checkpoint is saved.

    Raises:
        RunFailed: DeepSpeed's converter failed.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    tag = f"global_step{checkpoint.step}"
    argv = [
        sys.executable, "-P", "-m", _CONVERTER, *(["--trust"] if trust else []),
        "--input_folder", str(checkpoint.path / tag),
        "--output_folder", str(partial / f"{tag}_universal"),
        "--num_extract_workers", "1", "--num_merge_workers", "1",
    ]  # fmt: skip
    if checkpoint.zero_stage < 3:
        argv.append("--inject_missing_state")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        done = subprocess.run(argv, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"the checkpoint of step {checkpoint.step} could not be converted",
            where=Where(file=log),
            hint=f"resume with {checkpoint.world_size} ranks: that needs no conversion",
        )
    shutil.copy2(checkpoint.path / _TRAINER_STATE, partial / _TRAINER_STATE)
    partial.replace(folder)


def _check_stages(run: RunDirectory, old: int, new: int) -> None:
    if old == new or {old, new} == {1, 2}:
        return
    raise OptionError(
        f"the checkpoint was written under ZeRO stage {old}, and its optimizer state can't be "
        f"carried to stage {new}",
        where=Where(file=run.path),
        hint=f"resume with `--set parallel.zero_stage={old}`; or start a new run from the weights: "
        "`dslm export`, then `--set model.name=FOLDER --set model.init=pretrained`",
    )
