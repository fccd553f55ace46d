"""Records become documents, part by part: what an interruption costs is one part.

Parts lie on disk until all is prepared. A part is bounded in what it holds, so that neither memory
nor the time between two of them depends on how long documents are.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np

from dslm.errors import DslmError
from dslm.recipe.data_paths import origins, sources
from dslm.recipe.formats import KINDS, formed
from dslm.recipe.schema import Recipe
from dslm.units import number_of
from dslm.worker.data.records import BadRecords, Record, first_line, read_records
from dslm.worker.data.store import Ragged, dtype_of, offsets_of

TELL = 0.5  # seconds between two words about progress
_PART = 4096  # records encoded at a time,
_PART_SIZE = 2**22  # or until they hold this many characters, bytes or numbers

# what a record that is nested too deep, or has names of several types, can't be hashed for
NO_KEY = (RecursionError, TypeError, ValueError)

Encoded = dict[str, Sequence[int]]
OnPhase = Callable[[str], None]
_T = TypeVar("_T")


class Encoder(Protocol):
    """A task's conversion of a record to a document: columns of whole numbers, or what is wrong."""

    packs: bool
    labels: dict[str, int]
    notes: Counter[str]  # what was done to documents, counted

    def encode(self, records: list[dict[str, Any]]) -> list[Encoded | str]:
        """Encode records, each into its columns or a sentence about what is wrong with it."""
        ...


@dataclass(frozen=True, slots=True)
class Documents:
    """Encoded documents of a split: their columns, keys and sources, in the order of reading."""

    columns: dict[str, Ragged]
    keys: np.ndarray  # uint64
    sources: np.ndarray  # number of the origin

    def take(self, indices: np.ndarray) -> Documents:
        columns = {name: column.take(indices) for name, column in self.columns.items()}
        return Documents(columns, self.keys[indices], self.sources[indices])


def key_of(recipe: Recipe, values: dict[str, Any]) -> int:
    """A number that stands for a record, the same on every machine: a hash of its key or of it.

    Where a text is all that is learnt of a record, the text alone identifies it.
    """
    field = recipe.data.key_field
    if field is None and recipe.task in ("pretrain", "mlm"):
        field = recipe.data.text_field
    key = values.get(field) if field is not None else None
    if key is None:
        key = json.dumps(values, sort_keys=True, default=_json_bytes)
    digest = hashlib.blake2b(str(key).encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _json_bytes(value: object) -> str:
    """Encode values that JSON lacks: bytes by their hash, anything else by its text."""
    if isinstance(value, bytes):
        return hashlib.blake2b(value).hexdigest()
    return repr(value)


def encode(
    recipe: Recipe,
    name: str,
    encoder: Encoder,
    folder: Path,
    problems: BadRecords,
    on_phase: OnPhase,
) -> tuple[Documents, Counter[str]]:
    """Every document of a split's sources, from parts on disk that are written as they are made.

    What else is known of them is counted: shapes of records (`sharegpt`), `tools`, `cut`.

    A thread encodes one part, the tokenizer on all cores, while the part before it is written and
    the one after it is read.
    """
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    found: list[Path] = []
    count, told = 0, time.monotonic()
    notes: Counter[str] = Counter()
    shape = Shaper(recipe, name)
    batches = _batches(read_records(recipe, origins(recipe, name), problems))
    with ThreadPoolExecutor(1) as thread:

        def start(number: int, batch: list[Record]) -> tuple[Path, list[Record], Future[Any]]:
            part = parts / f"{name}-{number:06}.npz"
            return part, batch, thread.submit(_encode_part, encoder, part, batch, shape)

        for part, batch, encoding in _one_ahead(starmap(start, enumerate(batches))):
            encoded = encoding.result()
            if encoded is not None:
                _write_part(recipe, part, batch, encoded)
            facts = _facts(part)
            for place, what in facts["problems"]:
                problems.add(place, what)
            notes.update(facts["notes"])
            found.append(part)
            count += len(batch)
            if time.monotonic() - told > TELL:
                told = time.monotonic()
                on_phase(f"encoded {number_of(count, 'document')} ({name})")
    return _read_parts(found, parts / name), notes


class Shaper:
    """Makes what a task learns from of records, whatever shape their source keeps them in."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        self._kind = KINDS.get(recipe.task)
        data = recipe.data
        self._settings: list[tuple[str, dict[str, str]]] = []
        for source in sources(recipe, name):
            fields = {str(ours): theirs for ours, theirs in (data.fields | source.fields).items()}
            self._settings.append((source.format or data.format, fields))

    def __call__(self, record: Record) -> tuple[str, dict[str, Any] | str]:
        """The name of a record's shape and what is in it, or what is wrong with it."""
        if self._kind is None:
            return "", record.values
        form, fields = self._settings[record.source]
        return formed(record.values, self._kind, name=form, fields=fields)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in parts, always the same ones: bounded in number and in what they hold."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += sum(len(value) for value in record.values.values() if isinstance(value, Sized))
        if len(batch) == _PART or size >= _PART_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _one_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yield items one behind the source, so that the work each has started overlaps the next."""
    waiting: deque[_T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The encoded records of a part, with the labels known at its end and what was counted."""

    documents: list[Encoded | str]
    labels: dict[str, int]
    notes: Counter[str]


def _encode_part(encoder: Encoder, part: Path, records: list[Record], shape: Shaper) -> Part | None:
    """The documents of records; None where the part is written."""
    if part.is_file():
        encoder.labels.update(_facts(part)["labels"])
        return None
    encoder.notes.clear()
    shaped = [shape(record) for record in records]
    good = [values for _, values in shaped if not isinstance(values, str)]
    made = iter(_encode(encoder, good))
    documents = [what if isinstance(what, str) else next(made) for _, what in shaped]
    notes = Counter(encoder.notes)
    for (name, values), document in zip(shaped, documents, strict=True):
        if not isinstance(document, str) and name:
            notes[name] += 1
            notes["tools"] += "tools" in values
    return Part(documents=documents, labels=dict(encoder.labels), notes=+notes)


def _encode(encoder: Encoder, records: list[dict[str, Any]]) -> list[Encoded | str]:
    """The documents of records; one that an encoder can't deal with is named, not the others' end.

    Raises:
        DslmError: the recipe is wrong, whatever the records are.
    """
    try:
        return encoder.encode(records)
    except DslmError:
        raise
    except Exception as failure:  # noqa: BLE001 - a record may be anything
        if len(records) == 1:
            return [f"can't be encoded: {type(failure).__name__}: {first_line(failure)}"]
    middle = len(records) // 2
    return [*_encode(encoder, records[:middle]), *_encode(encoder, records[middle:])]


def _facts(part: Path) -> dict[str, Any]:
    """The facts of a part beside its documents: its problems, and the labels known at its end."""
    with np.load(part) as stored:
        return dict(json.loads(str(stored["facts"])))


def _write_part(recipe: Recipe, path: Path, records: list[Record], part: Part) -> None:
    columns: dict[str, list[Sequence[int]]] = {}
    problems, keys, sources = [], [], []
    key_field = recipe.data.key_field
    for record, document in zip(records, part.documents, strict=True):
        if isinstance(document, str):
            problems.append((record.place, document))
            continue
        if key_field is not None and record.values.get(key_field) is None:
            problems.append((record.place, f"has no `{key_field}` (data.key_field)"))
            continue
        try:
            key = key_of(recipe, record.values)
        except NO_KEY as failure:
            problems.append((record.place, f"nothing identifies it: {first_line(failure)}"))
            continue
        keys.append(key)
        sources.append(record.source)
        for name, values in document.items():
            columns.setdefault(name, []).append(values)
    arrays: dict[str, np.ndarray] = {
        "keys": np.array(keys, dtype=np.uint64),
        "sources": np.array(sources, dtype=np.int32),
        "facts": np.array(
            json.dumps({"problems": problems, "labels": part.labels, "notes": part.notes})
        ),
    }
    for name, lists in columns.items():
        lengths = np.array([len(values) for values in lists], dtype=np.int64)
        flat = chain.from_iterable(lists)
        arrays[f"{name}-lengths"] = lengths
        arrays[f"{name}-values"] = np.fromiter(flat, dtype_of(name), count=int(lengths.sum()))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    partial.replace(path)


def _read_parts(paths: list[Path], target: Path) -> Documents:
    """All parts together: each column's values in a file of its own beside them, and mapped."""
    lengths: dict[str, list[np.ndarray]] = {}
    keys, sources = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    with ExitStack() as streams:
        files: dict[str, IO[bytes]] = {}
        for path in paths:
            with np.load(path) as stored:
                keys.append(stored["keys"])
                sources.append(stored["sources"])
                for name in (n.removesuffix("-lengths") for n in stored if n.endswith("-lengths")):
                    if name not in files:
                        file = target.with_name(f"{target.name}-{name}")
                        files[name] = streams.enter_context(file.open("wb"))
                    stored[f"{name}-values"].tofile(files[name])
                    lengths.setdefault(name, []).append(stored[f"{name}-lengths"])
    columns = {
        name: Ragged.of(_mapped(Path(files[name].name), name), offsets_of(np.concatenate(found)))
        for name, found in lengths.items()
    }
    return Documents(columns, np.concatenate(keys), np.concatenate(sources))


def _mapped(file: Path, column: str) -> np.ndarray:
    if not file.stat().st_size:  # nothing can't be mapped
        return np.empty(0, dtype_of(column))
    return np.memmap(file, dtype_of(column), mode="r")
