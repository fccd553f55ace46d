"""Where profiles are kept: those of the presets ship with dslm, others are in the user's cache.

A profile is found by what it was made from, so that it is never one of another model. A shipped
one counts whatever versions are installed (it says which it was traced with); one in the cache
belongs to the versions of torch and transformers, and to the code that traced it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from dslm.files import write_json
from dslm.profile.value import FORMAT, Profile, from_document, to_document

SHIPPED = Path(__file__).parent / "shipped.zip"
PRESETS = "presets.json"  # in it: parameters by name
_LIBRARIES = ("torch", "transformers")


def key_of(request: Mapping[str, object]) -> str:
    """What a request for a profile is found by."""
    text = json.dumps([FORMAT, request], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def stored(request: Mapping[str, object], *, cache: bool = True) -> Profile | None:
    """Return the profile of a request, if it is shipped or (with `cache`) was made here before."""
    if request["device"] == "cpu":
        other = stored({**request, "device": "accelerator"}, cache=cache)
        if other is not None and other.of_any_device:
            return other
    key = key_of(request)
    if key in _shipped_names():
        with zipfile.ZipFile(SHIPPED) as archive:
            return from_document(json.loads(archive.read(key)))
    if not cache:
        return None
    try:
        return from_document(json.loads(_cached(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or half of it: made anew


def keep(request: Mapping[str, object], profile: Profile) -> None:
    """Keep a profile in the user's cache; one that can't be written is made again."""
    file = _cached(key_of(request))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, to_document(profile))
    except OSError:
        return


@functools.cache
def preset_parameters() -> dict[str, int]:
    """Parameters of every preset, by its name."""
    with zipfile.ZipFile(SHIPPED) as archive:
        found: dict[str, int] = json.loads(archive.read(PRESETS))
        return found


@functools.cache
def _shipped_names() -> frozenset[str]:
    if not SHIPPED.is_file():
        return frozenset()
    with zipfile.ZipFile(SHIPPED) as archive:
        return frozenset(archive.namelist())


@functools.cache
def _makers() -> str:
    """What made a profile: the libraries, and dslm's own tracing code."""
    code = hashlib.blake2b(digest_size=6)
    worker = Path(__file__).parent.parent / "worker"
    for file in sorted([*worker.glob("trace/*.py"), *worker.glob("layout/tiles*.py")]):
        code.update(file.read_bytes())
    return "-".join([*(importlib.metadata.version(n) for n in _LIBRARIES), code.hexdigest()])


def _cached(key: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dslm" / "profiles" / _makers() / f"{key}.json"
