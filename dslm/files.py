"""Files that are either whole or absent: atomic writes, one-line appends; the cache folder.

Knows paths and bytes, nothing of what is in them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dslm import environment


def write_atomic(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a whole file or none of it: a temporary file beside it, fsync, then rename.

    Raises:
        OSError: the folder can't be written; the old file, if any, is untouched.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write a JSON document atomically, indented, with a final newline."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode=mode)


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, so that lines of several processes never mix (O_APPEND)."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)


def cache_folder(variables: Mapping[str, str]) -> Path:
    """Return the user's cache folder: `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(variables.get(environment.CACHE) or "~/.cache").expanduser()
