"""Files that are whole or absent: atomic writes, one-line appends; JSON; the cache folder.

Knows paths, bytes and JSON, nothing of what is in them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dslm import environment


def write_atomic(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a whole file or none of it: a temporary file beside it, fsync, then rename.

    Raises:
        OSError: the folder can't be written; the old file, if any, is untouched.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with _naming(path), os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def exists(path: Path) -> bool:
    """Return whether a file or folder exists, also for a name that is too long or impossible."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def expanded(text: str) -> Path:
    """Return a path as it was given, `~` replaced by the home of a user who is known."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_file(path: Path) -> bool:
    """Return whether a file exists, whatever its name is."""
    return exists(path) and path.is_file()


def is_folder(path: Path) -> bool:
    """Return whether a folder exists, whatever its name is."""
    return exists(path) and path.is_dir()


def json_text(value: object, *, indent: int | None = 2) -> str:
    """Return a JSON document: strict, so a number that JSON does not know is null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {
            str(k) if isinstance(k, float) and not math.isfinite(k) else k: _finite(v)
            for k, v in value.items()
        }
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    """Write a JSON document atomically, indented, with a final newline."""
    write_atomic(path, json_text(value) + "\n", mode=mode)


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, so that lines of several processes never mix (O_APPEND).

    Raises:
        OSError: it can't be written; where a disk fills up, its beginning may be.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    rest = line.encode() + b"\n"
    try:
        with _naming(path):
            while rest:  # more than once where a disk fills up: the second write says so
                rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def append_whole(path: Path, line: str) -> None:
    """Append a line, whole and on the disk or not at all, to a file that nobody else writes.

    Raises:
        OSError: it can't be written; the file is as it was, and absent where it was.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    before = os.fstat(handle).st_size
    rest = line.encode() + b"\n"
    try:
        with _naming(path):
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, before)
        if not before:
            path.unlink()
        raise
    finally:
        os.close(handle)


def copy_folder(source: Path, target: Path) -> None:
    """Copy what a folder holds; files of the same name are overwritten.

    Raises:
        OSError: the first that can't be copied; `shutil.copytree` tells all as one text.
    """
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            shutil.copy2(path, target / path.name)


def unwritable(path: Path) -> str | None:
    """Return why no file can be written at a place; None: one can, as far as names tell."""
    if path.is_dir():
        return "is a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return None if os.access(path.parent, os.W_OK) else "its folder can't be written to"


def is_full(failure: OSError) -> bool:
    """Return whether a file can't be written for want of space, on the disk or in a quota."""
    return failure.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in a failure to write into it: a write knows only its handle."""
    try:
        yield
    except OSError as failure:
        failure.filename = failure.filename or str(path)
        raise


def cache_folder(variables: Mapping[str, str]) -> Path:
    """Return the user's cache folder: `$XDG_CACHE_HOME`, by default `~/.cache`.

    Raises:
        OSError: the user has no home, and somebody else has the folder for those in /tmp.
    """
    named = variables.get(environment.CACHE)
    try:
        return Path(named or "~/.cache").expanduser()
    except RuntimeError:  # no HOME, and nobody in the list of users has this number
        folder = Path(tempfile.gettempdir()) / f"dslm-cache-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "belongs to somebody else", str(folder)) from None
        return folder
