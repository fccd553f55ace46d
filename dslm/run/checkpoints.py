"""Checkpoints as files: which are complete, which are sound, which are to go.

A checkpoint is a folder `checkpoints/step-N` with a manifest that lists every file, its size and
its checksum. The manifest is written last, the folder renamed after it: what has the name is whole,
unless a disk has lost something since. Torch-free: the launcher asks, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslm.files import write_json

MANIFEST = "manifest.json"
_BLOCK = 2**24
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
    for manifest in folder.glob("step-*/" + MANIFEST):
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            checkpoint = Checkpoint(
                path=manifest.parent,
                step=content["step"],
                world_size=content["world_size"],
                zero_stage=content["zero_stage"],
                eval_loss=content.get("eval_loss"),
                files=content["files"],
            )
            there = {n: p.stat().st_size for n, p in _files(manifest.parent).items()}
            if there == {name: entry["size"] for name, entry in checkpoint.files.items()}:
                found.append(checkpoint)
        except (OSError, ValueError, KeyError):
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


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
    names = sorted(folder.glob("step-*"), key=lambda p: int(p.name.partition("-")[2]), reverse=True)
    for path in names:
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
