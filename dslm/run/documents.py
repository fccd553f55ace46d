"""The documents of a run directory: their types and format, read and written in one place.

Each is a JSON object with a `format`; a document without one is of version 0.1, before there was a
format, and is read as it is. A later format is refused by name and version: what it means can't be
known. What a document does not say is None, or the default of its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from dslm.codec import Count, Json, Malformed, Strict, Time, decode, encode, read_object
from dslm.errors import OptionError, Where
from dslm.files import write_json
from dslm.run.endings import ErrorReport, Loss

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Document(Strict):
    """A JSON object with a format."""

    what: ClassVar[str] = ""
    format: Count = FORMAT


D = TypeVar("D", bound=Document)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSlots(Strict):
    """A host and how many ranks it has."""

    host: str
    slots: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class GitState(Strict):
    """The commit of the folder that a run was started in, and whether it had changes."""

    commit: str
    changed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord(Strict):
    """One attempt, as the manifest has it; `ended` and `status` once it has ended."""

    attempt: Count
    started: Time
    hosts: tuple[HostSlots, ...] = ()
    world_size: Count = 0
    resumed_from: str | None = None  # a folder, relative to the run
    step: Count = 0
    ended: Time | None = None
    status: str | None = None
    cause: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest(Document):
    """The origin of a run: versions, code, command, hosts, and its attempts."""

    what: ClassVar[str] = "the manifest of the run"
    name: str
    created: Time
    command: tuple[str, ...] = ()
    folder: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    git: GitState | None = None
    hosts: tuple[HostSlots, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RankStatus(Document):
    """The status of a rank; `exit_code` is set once it has reported its end."""

    what: ClassVar[str] = "the status of a rank"
    rank: Count
    host: str
    pid: Count
    start_time: Count | None = None  # clock ticks since its host was started
    parent_pid: Count | None = None
    kills_before: int | None = None
    exit_code: int | None = None
    ended: Time | None = None
    left: Time | None = None  # when its connection ended, or its host answered last
    lost: Loss | None = None  # without a last word
    error: str | None = None  # in a line
    report: ErrorReport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedModel(Strict):
    """The planner's knowledge of the model."""

    parameters: Count | None = None
    flops_per_token: float | None = None
    apart: Mapping[str, bool] = field(default_factory=dict)  # see dslm.recipe.packs


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCluster(Strict):
    """The cluster that a plan is for."""

    device: str | None = None
    peak_flops: float | None = None
    hosts: Count | None = None
    world_size: Count | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedDevice(Strict):
    """Bytes on one device, by part and by phase."""

    total: int | None = None
    parameters: int | None = None
    gradients: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    logits: int | None = None
    buffers: int | None = None
    context: int | None = None
    phases: Mapping[str, int] | None = None

    @property
    def parts(self) -> dict[str, int]:
        """The parts that are not nothing, by name."""
        names = (
            "parameters", "gradients", "optimizer", "activations", "logits", "buffers", "context",
        )  # fmt: skip
        return {name: size for name in names if (size := getattr(self, name))}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedHost(Strict):
    """Bytes on one host."""

    total: int | None = None
    capacity: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMemory(Strict):
    """Memory as it was planned; `capacity` in bytes, of a device."""

    device: PlannedDevice | None = None
    host: PlannedHost | None = None
    capacity: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTime(Strict):
    """Time as it was planned."""

    step_seconds: float | None = None
    total_seconds: float | None = None
    cost: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFile(Document):
    """plan.json, as far as the run itself asks it again; the planner writes more."""

    what: ClassVar[str] = "the plan of the run"
    model: PlannedModel = field(default_factory=PlannedModel)
    cluster: PlannedCluster = field(default_factory=PlannedCluster)
    memory: PlannedMemory = field(default_factory=PlannedMemory)
    time: PlannedTime | None = None
    fits: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry(Strict):
    """A file of a checkpoint."""

    size: Count
    blake2b: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest(Document):
    """The description of a checkpoint, with every file of it."""

    what: ClassVar[str] = "the manifest of the checkpoint"
    step: Count
    world_size: Count
    zero_stage: Count
    tensor: Count = 1
    sequence: Count = 1
    expert: Count = 1
    portable: bool = False  # it knows no layout, whatever it was written under
    global_batch: Count | None = None
    data: str | None = None  # the identity of what was trained on
    versions: Mapping[str, str] = field(default_factory=dict)
    eval_loss: float | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written(Document):
    """The files of a checkpoint that one rank has written to disk."""

    what: ClassVar[str] = "what a rank has written"
    files: Mapping[str, FileEntry] = field(default_factory=dict)


def read_document(kind: type[D], path: Path) -> D:
    """Read a document.

    Raises:
        OptionError: there is none, it is of a later format, or it can't be read.
    """
    try:
        text = path.read_bytes()
    except OSError as failure:
        reason = failure.strerror or type(failure).__name__
        raise OptionError(f"{kind.what} can't be read: {reason}", where=Where(file=path)) from None
    try:
        found = read_object(text)
        check_format(found, path, kind.what)
        return decode(kind, text)
    except Malformed as failure:
        raise OptionError(
            f"{kind.what} is damaged: {failure}",
            where=Where(file=path),
            hint="restore the file from a copy; events, logs and checkpoints beside it are intact",
        ) from None


def find_document(kind: type[D], path: Path, *, refuse_later: bool = False) -> D | None:
    """Return a document, or None where there is none that can be read.

    Args:
        kind: of document.
        path: where it is.
        refuse_later: one that a later version wrote must not be taken for none.

    Raises:
        OptionError: it is of a later format, and that is refused.
    """
    if refuse_later:
        with suppress(OSError, Malformed):
            check_format(read_object(path.read_bytes()), path, kind.what)
    try:
        return read_document(kind, path)
    except OptionError:
        return None


def write_document(path: Path, document: Document, *, mode: int = 0o644) -> None:
    """Write a document, whole or not at all."""
    write_json(path, encode(document), mode=mode)


def check_format(found: Mapping[str, Json], path: Path, what: str) -> None:
    """Check that a document is of a format that this version reads.

    Raises:
        OptionError: it is of a later one.
        Malformed: its format is no number.
    """
    number = found.get("format", 0)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise Malformed("`format` is not a number")
    if number > FORMAT:
        versions = found.get("versions")
        made_by = versions.get("dslm") if isinstance(versions, Mapping) else None
        by = f" by dslm {made_by}" if made_by else " by a later version of dslm"
        raise OptionError(
            f"{what} was written{by}, in format {number}; this version reads up to {FORMAT}",
            where=Where(file=path),
            hint=f"use dslm {made_by or 'of that version'} or later for it",
        )
