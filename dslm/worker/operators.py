"""Operators that DeepSpeed builds when they are first used, and what a killed build leaves behind.

torch marks a build under way by a file and waits until it is gone, however long that takes
(FileBaton in torch/utils/file_baton.py, torch 2.13). A build that was killed would make every later
run hang, so marks that nobody holds are removed before anything is built. Knows no operator.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import psutil
from torch.utils.cpp_extension import get_default_build_root

_MARK = "lock"
_LOOK_AGAIN_SECONDS = 1.0  # a builder that is done closes its mark a moment before it removes it
_BUILD_SECONDS = 1800.0  # the longest build on a host whose processes can't be seen from here
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p"})


def build_folder() -> Path:
    """Where torch builds operators: TORCH_EXTENSIONS_DIR, or below ~/.cache."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def is_built(name: str, folder: Path) -> bool:
    """Whether an operator has been built before."""
    return any(folder.rglob(f"{name}/{name}.so"))


def remove_dead_marks(folder: Path, *, alone: bool = True) -> list[Path]:
    """Remove the marks of builds that nobody goes on with; all ranks of a host may call at once.

    A builder holds its mark open. On a network file system, or where several hosts train, it may be
    one of another host, which can't be seen from here: there a mark must also be half an hour old.

    Args:
        folder: of all operators.
        alone: whether the run has this host only; containers may share a folder that looks local.

    Returns:
        What was removed.
    """
    marks = sorted(folder.rglob(_MARK)) if folder.is_dir() else []
    if not marks:
        return []
    removed = []
    with (folder / ".dslm").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        before = {mark: _identity(mark) for mark in marks if _is_dead(mark, alone)}
        if before:
            time.sleep(_LOOK_AGAIN_SECONDS)
        for mark, identity in before.items():
            if identity is not None and _identity(mark) == identity and _is_dead(mark, alone):
                mark.unlink(missing_ok=True)
                removed.append(mark)
    return removed


def _identity(mark: Path) -> tuple[int, int] | None:
    try:
        status = mark.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_dead(mark: Path, alone: bool) -> bool:
    if _is_open(mark):
        return False
    identity = _identity(mark)
    if identity is None or (alone and not _is_on_network(mark)):
        return identity is not None
    return time.time() - identity[1] / 1e9 > _BUILD_SECONDS


def _is_open(file: Path) -> bool:
    """Whether a process of this user on this host has a file open."""
    real = file.resolve()
    return any(_points_to(link, real) for pid in psutil.pids() for link in _links(pid))


def _links(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []  # it has ended, or is another user's


def _points_to(link: Path, file: Path) -> bool:
    try:
        return link.readlink() == file
    except OSError:
        return False  # closed meanwhile


def _is_on_network(file: Path) -> bool:
    above = [
        partition
        for partition in psutil.disk_partitions(all=True)
        if file.resolve().is_relative_to(partition.mountpoint)
    ]
    nearest = max(above, key=lambda partition: len(partition.mountpoint), default=None)
    kind = nearest.fstype if nearest else ""
    return kind in _NETWORK or kind.startswith("fuse.")
