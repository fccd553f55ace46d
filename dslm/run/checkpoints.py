"""Checkpoints as files: which are complete, which are sound, which are to go.

A checkpoint is a folder `checkpoints/step-N` with a manifest that lists every file, its size and
its checksum. The manifest is written last, the folder renamed after it: what has the name is whole,
unless a disk has lost something since. Torch-free: the launcher asks, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm.files import write_json

MANIFEST = "manifest.json"
_BLOCK = 2**24
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")
_TAG = re.compile(r"global_step[0-9]+(_universal)?")  # DeepSpeed's name of a folder of states
FileEntry = dict[str, Any]  # `size` in bytes and `blake2b`


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint: every file is there with its size."""

    path: Path
    step: int
    world_size: int
    zero_stage: int
    eval_loss: float | None = None
    files: dict[str, FileEntry]


def write_manifest(
    folder: Path, known: Mapping[str, FileEntry] | None = None, **facts: Any
) -> None:
    """List every file of a folder with size and checksum, beside the facts about it.

    Args:
        folder: the checkpoint's.
        known: entries that are known already; the other files are read.
        facts: what else the manifest says.
    """
    given = known or {}
    rest = file_entries(folder, (name for name in _files(folder) if name not in given))
    write_json(folder / MANIFEST, {**facts, "files": {**given, **rest}})


def file_entries(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and checksum of some files of a folder; reads them."""
    paths = {name: folder / name for name in names}
    return {
        name: {"size": path.stat().st_size, "blake2b": checksum(path)}
        for name, path in paths.items()
    }


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints, the oldest first; sizes are compared, checksums are not."""
    found = []
    for path in _step_folders(folder):
        try:
            checkpoint = _read_checkpoint(path)
            there = {n: p.stat().st_size for n, p in _files(path).items()}
            if there == {name: entry["size"] for name, entry in checkpoint.files.items()}:
                found.append(checkpoint)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return found


def state_folder(checkpoint: Path) -> Path:
    """The folder of DeepSpeed's states in a checkpoint, which the file `latest` names.

    Raises:
        ValueError: it names something else than a folder in the checkpoint.
        OSError: it can't be read.
    """
    name = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    if not _TAG.fullmatch(name):
        raise ValueError(f"`latest` names no folder of states: {name[:40]!r}")
    return checkpoint / name


def _read_checkpoint(path: Path) -> Checkpoint:
    """What a manifest says; what is wrong in it raises."""
    content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    numbers = {name: content[name] for name in ("step", "world_size", "zero_stage")}
    if not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise ValueError("numbers are wrong")
    if path.name != f"step-{numbers['step']}":
        raise ValueError("it is another step's")
    return Checkpoint(
        path=path, **numbers, eval_loss=content.get("eval_loss"), files=content["files"]
    )


def _step_folders(folder: Path) -> list[Path]:
    """The folders that have a checkpoint's name, the oldest first."""
    named = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return [path for _, path in sorted((int(m[1]), path) for m, path in named if m)]


def superseded(complete: list[Checkpoint], keep: int, keep_best: int) -> list[Checkpoint]:
    """Checkpoints that may go: neither among the newest nor the best; never the newest of all.

    Args:
        complete: the oldest first.
        keep: how many of the newest stay.
        keep_best: how many of those with the lowest evaluation loss stay.
    """
    evaluated = [checkpoint for checkpoint in complete if checkpoint.eval_loss is not None]
    best = sorted(evaluated, key=lambda c: (c.eval_loss, -c.step))[:keep_best]
    stay = {checkpoint.step for checkpoint in [*complete[-max(keep, 1) :], *best]}
    return [checkpoint for checkpoint in complete if checkpoint.step not in stay]


def newest_sound(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose checksums are right, and what is wrong with newer ones."""
    complete = {checkpoint.path: checkpoint for checkpoint in complete_checkpoints(folder)}
    problems = []
    for path in reversed(_step_folders(folder)):
        checkpoint = complete.get(path)
        if checkpoint is None:
            problems.append(f"{path.name} is not complete")
            continue
        wrong = [n for n, e in checkpoint.files.items() if checksum(path / n) != e["blake2b"]]
        if not wrong:
            return checkpoint, problems
        problems.append(f"{path.name} is damaged: {', '.join(wrong)}")
    return None, problems


def checksum(path: Path) -> str:
    """BLAKE2b of a file, 16 bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
