"""Create a run directory: completely, or not at all.

Knows paths and what is written into them at the start, nothing of what a run does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dslm.cluster.hosts import Host
from dslm.codec import encode
from dslm.errors import OptionError, Where
from dslm.files import write_atomic, write_json
from dslm.run.directory import RunDirectory
from dslm.run.documents import HostSlots
from dslm.run.manifest import new_manifest

_STAGING = ".new."  # files of a run directory on their way into it


def make_run(
    folder: Path,
    name: str,
    files: Mapping[str, object],
    command: Sequence[str],
    hosts: Sequence[Host],
) -> RunDirectory:
    """Make a run directory with its files, or nothing at all.

    Raises:
        OptionError: the folder holds something, can't be made, or the disk is full.
    """
    run = RunDirectory(folder.absolute())
    check_output(run.path)
    manifest = new_manifest(name=name, command=command, hosts=named(hosts))
    made = [p for p in (run.path, *run.path.parents) if not p.exists()]
    contents = {**files, run.manifest.name: encode(manifest)}  # the last makes it a run
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        for leftover in run.path.glob(f"{_STAGING}*"):  # of somebody who was killed here
            shutil.rmtree(leftover)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=run.path))
        try:
            for file, content in contents.items():
                if isinstance(content, str):
                    write_atomic(staging / file, content)
                else:
                    write_json(staging / file, content)
            for file in contents:
                (staging / file).replace(run.path / file)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as failure:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise OptionError(
            f"the run directory can't be written: {failure.strerror}",
            where=Where(file=folder),
            hint="choose another with `-o DIR`",
        ) from failure
    return run


def named(hosts: Sequence[Host]) -> tuple[HostSlots, ...]:
    """Hosts and their ranks, as the manifest has them."""
    return tuple(HostSlots(host=host.name, slots=host.slots) for host in hosts)


def check_output(path: Path) -> None:
    """Check that a new run may be made in a folder: it is not there, or holds but a run's lock.

    Raises:
        OptionError: it holds something.
    """
    if not path.exists():
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise OptionError(
                f"the run directory can't be made: {above} can't be written",
                where=Where(file=path),
                hint="choose another with `-o DIR`",
            )
        return
    if not path.is_dir():
        raise OptionError("is a file, not a folder", where=Where(file=path))
    if (path / "manifest.json").is_file():
        raise OptionError(
            "holds another run",
            where=Where(file=path),
            hint="it is finished, or was not made by `dslm train`: choose another with `-o DIR`",
        )
    rest = (p.name for p in path.iterdir() if p.name != RunDirectory(path).lock.name)
    if any(not name.startswith(_STAGING) for name in rest):
        raise OptionError(
            "the folder is not empty", where=Where(file=path), hint="choose another with `-o DIR`"
        )


def default_folder(name: str) -> Path:
    """`runs/NAME-TIME`, with a number when two start in one second."""
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder
