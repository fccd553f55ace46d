"""Checkpoints as files: which are complete, which are sound, which are to go.

A checkpoint is a folder `checkpoints/step-N` with a manifest that lists every file, its size and
its checksum. The manifest is written last, the folder renamed after it: what has the name is whole,
unless a disk has lost something since. Torch-free: the launcher asks, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dslm.errors import OptionError, Where
from dslm.run.documents import CheckpointManifest, FileEntry, find_document, write_document
from dslm.units import number_of

MANIFEST = "manifest.json"
_BLOCK = 2**24
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")
_TAG = re.compile(r"global_step[0-9]+(_universal)?")  # DeepSpeed's name of a folder of states


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedLayout:
    """The layout that a checkpoint was written under, or is to be loaded into."""

    world_size: int
    zero_stage: int
    tensor: int = 1
    sequence: int = 1
    expert: int = 1

    def __str__(self) -> str:
        ranks = number_of(self.world_size, "rank")
        shared = [
            f"{n} {s}" for n in ("tensor", "sequence", "expert") if (s := getattr(self, n)) > 1
        ]
        return ", ".join([ranks, f"stage {self.zero_stage}", *shared])


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint: every file is there with its size."""

    path: Path
    step: int
    layout: SavedLayout
    portable: bool = False
    eval_loss: float | None = None
    files: Mapping[str, FileEntry]


def write_manifest(
    folder: Path, manifest: CheckpointManifest, known: Mapping[str, FileEntry] | None = None
) -> None:
    """List every file of a folder with size and checksum, beside the facts about it.

    Args:
        folder: the checkpoint's.
        manifest: what else it says.
        known: entries that are known already; the other files are read.
    """
    given = known or {}
    rest = file_entries(folder, (name for name in _files(folder) if name not in given))
    write_document(folder / MANIFEST, replace(manifest, files={**given, **rest}))


def file_entries(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and checksum of some files of a folder; reads them."""
    paths = {name: folder / name for name in names}
    return {
        name: FileEntry(size=path.stat().st_size, blake2b=checksum(path))
        for name, path in paths.items()
    }


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return all complete checkpoints, the oldest first; sizes are compared, checksums are not.

    Raises:
        OptionError: a later version of dslm wrote one.
    """
    found = (_complete(path) for path in _step_folders(folder))
    return sorted((c for c in found if c is not None), key=lambda checkpoint: checkpoint.step)


def state_folder(checkpoint: Path) -> Path:
    """Return the folder of DeepSpeed's states in a checkpoint, which the file `latest` names.

    Raises:
        ValueError: it names something else than a folder in the checkpoint.
        OSError: it can't be read.
    """
    name = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    if not _TAG.fullmatch(name):
        raise ValueError(f"`latest` names no folder of states: {name[:40]!r}")
    return checkpoint / name


def _step_folders(folder: Path) -> list[Path]:
    """List the folders that are named as checkpoints are."""
    try:
        return [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    except OSError:
        return []


def _complete(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, if every file that its manifest lists is there with its size."""
    manifest = find_document(CheckpointManifest, path / MANIFEST, refuse_later=True)
    if manifest is None or manifest.step != step_of(path):
        return None
    try:
        there = {name: file.stat().st_size for name, file in _files(path).items()}
    except OSError:
        return None
    if there != {name: entry.size for name, entry in manifest.files.items()}:
        return None
    return Checkpoint(
        path=path,
        step=manifest.step,
        layout=SavedLayout(
            world_size=manifest.world_size,
            zero_stage=manifest.zero_stage,
            tensor=manifest.tensor,
            sequence=manifest.sequence,
            expert=manifest.expert,
        ),
        portable=manifest.portable,
        eval_loss=manifest.eval_loss,
        files=manifest.files,
    )


def step_of(path: Path) -> int:
    """Return the step that the name of a checkpoint's folder says."""
    return int(path.name.rpartition("-")[2])


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
    """Return the newest checkpoint whose checksums are right, and what is wrong with newer ones.

    Raises:
        OptionError: a later version of dslm wrote one of these.
    """
    problems = []
    for path in sorted(_step_folders(folder), key=step_of, reverse=True):
        checkpoint = _complete(path)
        if checkpoint is None:
            problems.append(f"{path.name} is not complete")
            continue
        wrong = damaged_files(checkpoint)
        if not wrong:
            return checkpoint, problems
        problems.append(f"{path.name} is damaged: {', '.join(wrong)}")
    return None, problems


def damaged_files(checkpoint: Checkpoint) -> list[str]:
    """Return the files of a checkpoint that are not what its manifest says; every byte is read."""
    return [
        name
        for name, entry in checkpoint.files.items()
        if _checksum_if_readable(checkpoint.path / name) != entry.blake2b
    ]


def _checksum_if_readable(path: Path) -> str | None:
    try:
        return checksum(path)
    except OSError:
        return None


@contextmanager
def in_use(checkpoint: Checkpoint) -> Iterator[None]:
    """Keep a checkpoint from being removed by the run that made it, while it is read.

    By a shared kernel lock on its manifest; where a file system has none, nothing is kept.

    Raises:
        OptionError: it has gone already.
    """
    try:
        handle = os.open(checkpoint.path / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as failure:
        raise OptionError(
            f"can't be read any more: {failure.strerror}", where=Where(file=checkpoint.path)
        ) from None
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def remove_unused(checkpoint: Checkpoint) -> bool:
    """Remove a checkpoint unless somebody reads it; whether it was removed."""
    try:
        handle = os.open(checkpoint.path / MANIFEST, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no kernel locks here
    finally:
        os.close(handle)
    shutil.rmtree(checkpoint.path)
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted or no longer wanted work of dslm's left beside the checkpoints."""
    for pattern in (".step-*.partial", ".portable-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


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
        if path.is_file() and not path.is_symlink() and path != folder / MANIFEST
    }
