"""The global batches that a run leaves out, since the loss jumped at them: skipped.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from dslm.codec import Count
from dslm.run.directory import RunDirectory
from dslm.run.documents import Document, find_document, write_document


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped(Document):
    """Numbers of global batches in the order of the data, from 0."""

    what: ClassVar[str] = "the batches that are left out"
    batches: tuple[Count, ...] = ()


def read_skipped(run: RunDirectory) -> tuple[int, ...]:
    """Return the batches that a run leaves out."""
    found = find_document(Skipped, run.skipped)
    return found.batches if found is not None else ()


def skip(run: RunDirectory, batches: Iterable[int]) -> tuple[int, ...]:
    """Leave out more batches; all that are left out now."""
    every = tuple(sorted({*read_skipped(run), *batches}))
    write_document(run.skipped, Skipped(batches=every))
    return every
