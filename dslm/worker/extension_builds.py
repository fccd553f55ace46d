"""Operators that DeepSpeed builds when they are first used, and what a killed build leaves behind.

They are kept apart for each environment: torch names the build after Python and CUDA only, so two
environments that share a cache would rebuild each other's operators in turn, a minute each time.

torch marks a build under way by a file and waits until it is gone, however long that takes
(FileBaton in torch/utils/file_baton.py, torch 2.13). A build that was killed would make every later
run hang, so marks that nobody holds are removed before anything is built. Knows no operator, and
imports neither torch nor DeepSpeed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

from dslm import environment
from dslm.files import cache_folder

_MARK = "lock"
_LOOK_AGAIN_SECONDS = 5.0  # a builder that is done closes its mark before it removes it
_BUILD_SECONDS = 1800.0  # the longest build on a host whose processes can't be seen from here
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p"})


def build_folder(variables: Mapping[str, str]) -> Path:
    """Return the folder of built operators: the user's own choice, or one for this environment.

    Below the folder that torch takes (`get_default_build_root` in torch/utils/cpp_extension.py),
    named after Python, torch and DeepSpeed, and a digest of what these names don't tell: where the
    environment is, and of which build its torch is.

    Args:
        variables: the environment variables.
    """
    chosen = variables.get(environment.EXTENSIONS)
    if chosen:
        return Path(chosen)
    spec = find_spec("torch")
    build = Path(spec.origin).with_name("version.py").read_bytes() if spec and spec.origin else b""
    unnamed = hashlib.blake2b(f"{sys.prefix} {sys.version}".encode() + build, digest_size=6)
    words = f"py{platform.python_version()}-torch{version('torch')}-deepspeed{version('deepspeed')}"
    return cache_folder(variables) / "torch_extensions" / f"{words}-{unnamed.hexdigest()}"


def program_path(variables: Mapping[str, str]) -> str:
    """Return where programs are looked for: first among those of this Python's environment.

    torch builds with the first `ninja` that it finds. What a login shell on another host finds is
    that system's own, of another version, whose log this one doesn't believe and the other way
    round: each would build every operator anew after the other has.

    Args:
        variables: the environment variables.
    """
    own, given = str(Path(sys.executable).parent), variables.get(environment.PATH, os.defpath)
    return given if given.split(os.pathsep)[0] == own else f"{own}{os.pathsep}{given}"


def is_built(name: str, folder: Path) -> bool:
    """Return whether an operator has been built before."""
    return any(folder.rglob(f"{name}/{name}.so"))


def remove_dead_marks(folder: Path) -> list[Path]:
    """Remove the lock files of abandoned builds; all ranks of a host may call at once.

    A builder holds its mark open. On a network file system it may be one of another host, which
    can't be seen from here: there a mark must be half an hour old.

    Args:
        folder: of all operators.

    Returns:
        What was removed.
    """
    marks = sorted(folder.rglob(_MARK)) if folder.is_dir() else []
    if not marks:
        return []
    removed = []
    with (folder / ".dslm").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        before = {mark: _identity(mark) for mark in marks if _is_dead(mark)}
        if before:
            time.sleep(_LOOK_AGAIN_SECONDS)
        for mark, identity in before.items():
            if identity is not None and _identity(mark) == identity and _is_dead(mark):
                mark.unlink(missing_ok=True)
                removed.append(mark)
    return removed


def _identity(mark: Path) -> tuple[int, int] | None:
    try:
        status = mark.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_dead(mark: Path) -> bool:
    identity = _identity(mark)
    if identity is None:
        return False
    held = None if _is_on_network(mark) else _is_held(mark)
    if held is None:
        return time.time() - identity[1] / 1e9 > _BUILD_SECONDS
    return not held


def _is_held(file: Path) -> bool | None:
    """Return whether a process has a file open, in whatever container of this host; None: unknown.

    A lease for writing is given only while nobody else has it open (`F_SETLEASE` in fcntl(2)). The
    signal that tells of somebody who opens it meanwhile is one that ends no process.
    """
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None  # another user's file, or a file system without leases
    finally:
        os.close(handle)  # and the lease is given back
    return False


def _is_on_network(file: Path) -> bool:
    above = [
        partition
        for partition in psutil.disk_partitions(all=True)
        if file.resolve().is_relative_to(partition.mountpoint)
    ]
    nearest = max(above, key=lambda partition: len(partition.mountpoint), default=None)
    kind = nearest.fstype if nearest else ""
    return kind in _NETWORK or kind.startswith("fuse.")
