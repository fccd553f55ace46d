"""Commands that benchmarks run: what one of them said is shown when it fails, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dslm.environment import EXTENSIONS, PATH
from dslm.worker.extension_builds import build_folder, program_path

BIN = Path(sys.executable).parent
DSLM = (str(BIN / "dslm"),)


def training(
    run: Path,
    settings: Mapping[str, object],
    *,
    recipe: str = "quickstart",
    program: Sequence[str] = DSLM,
) -> list[str]:
    """Return the command that trains a recipe with other values of its keys."""
    words = [word for key, value in settings.items() for word in ("-s", f"{key}={value}")]
    return [*program, "train", recipe, "-o", str(run), *words]


def checked(argv: list[str], **environment: str) -> None:
    """Run a command to its end, with these environment variables beside ours; exits if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")


def operators() -> dict[str, str]:
    """Return the variables with which plain DeepSpeed has the operators that dslm's ranks have.

    With another `ninja` than theirs it would build all of them anew, and they would after it.
    """
    variables = os.environ
    return {EXTENSIONS: str(build_folder(variables)), PATH: program_path(variables)}


def forget_shared_memory() -> None:
    """Remove DeepSpeed's shared memory of ranks that have ended: of itself it leaves 66 MiB a rank.

    Source of the names: `shm_initialize` in deepspeed/ops/csrc/cpu/comm/shm.cpp.
    """
    buffers = list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*"))
    mapped = "".join(_maps(process) for process in Path("/proc").glob("[0-9]*")) if buffers else ""
    for buffer in buffers:
        if buffer.name not in mapped:
            buffer.unlink(missing_ok=True)


def _maps(process: Path) -> str:
    try:
        return (process / "maps").read_text()
    except OSError:  # it is gone, or somebody else's
        return ""
