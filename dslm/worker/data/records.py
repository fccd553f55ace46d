"""From sources to records: one dictionary each, with the place where it stands.

Files are read by Hugging Face `datasets`; but text, JSON lines and CSV here, since it gives up at
the first broken record, and here that one is named and left out. Bad records are counted and kept
as examples; the recipe's `data.on_error` says if they are fatal.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow

from dslm.errors import DataError, Where
from dslm.recipe.data_paths import (
    ARITHMETIC,
    DIGITS,
    IMAGE_SUFFIXES,
    RECORD_SUFFIXES,
    STDLIB,
    DataSource,
    suffix_of,
)
from dslm.recipe.schema import Recipe
from dslm.worker.data import builtin_sources

_EXAMPLES = 5
_SHOWN = 300  # letters of an example
_DIGITS = 18  # of an item: no model has more
# what reading a file raises where it is missing, cut off or packed badly
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(slots=True)
class BadRecords:
    """Bad records: how many, and the first few with their place."""

    fatal: bool
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: str, what: str) -> None:
        """Note a bad record.

        Raises:
            DataError: bad records are fatal in this recipe.
        """
        if self.fatal:
            raise DataError(
                _cut(what),
                where=Where(file=place),
                hint="`data.on_error: skip` leaves such records out",
            )
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{place}: {_cut(what)}")


def _cut(what: str) -> str:
    return what if len(what) <= _SHOWN else what[:_SHOWN] + " …"


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `place` is `file:line` or the like, `source` the number of its origin."""

    place: str
    values: dict[str, Any]
    source: int = 0


def read_records(recipe: Recipe, found: list[DataSource], problems: BadRecords) -> Iterator[Record]:
    """Yield every record of the sources in order, at most `data.max_documents`."""
    limit = recipe.data.max_documents
    count = 0
    for number, origin in enumerate(found):
        for place, values in _of_origin(recipe, origin, problems):
            if limit is not None and count >= limit:
                return
            yield Record(place, values, number)
            count += 1


_Found = Iterator[tuple[str, dict[str, Any]]]


def _of_origin(recipe: Recipe, origin: DataSource, problems: BadRecords) -> _Found:
    if origin.path == STDLIB and recipe.task in builtin_sources.STDLIB_TASKS:
        yield from builtin_sources.stdlib_records(recipe.task, origin.files)
    elif origin.path == DIGITS:
        yield from builtin_sources.digits()
    elif origin.path == ARITHMETIC:
        yield from builtin_sources.arithmetic()
    elif origin.hub_name is not None:
        yield from _of_hub(origin)
    else:
        for file in origin.files:
            yield from _of_file(recipe, file, problems)


def _of_file(recipe: Recipe, file: Path, problems: BadRecords) -> _Found:
    suffix = suffix_of(file)
    if suffix in _OWN:
        yield from _OWN[suffix](file, problems)
    elif suffix in RECORD_SUFFIXES:
        yield from _table(file, RECORD_SUFFIXES[suffix], problems)
    elif suffix in IMAGE_SUFFIXES:
        yield str(file), {"image": file.read_bytes(), recipe.data.label_field: file.parent.name}
    elif recipe.task == "sequence":
        yield from _integer_lines(file, problems)
    else:
        try:
            with _open(file) as stream:
                text = stream.read().decode()
        except (*_UNREADABLE, ValueError) as failure:  # not UTF-8 is a ValueError
            problems.add(str(file), f"can't be read as UTF-8 text: {failure}")
            return
        yield str(file), {recipe.data.text_field: text}


def _open(file: Path) -> IO[bytes]:
    """Open a file, decompressed by its suffix."""
    if file.suffix == ".zst":
        stream: IO[bytes] = pyarrow.input_stream(str(file), compression="zstd")
        return io.BufferedReader(stream)  # type: ignore[type-var]
    return fsspec.open(str(file), "rb", compression="infer").open()


def _table(file: Path, builder: str, problems: BadRecords) -> _Found:
    from datasets import load_dataset

    try:
        records = load_dataset(builder, data_files=str(file), split="train", streaming=True)
        for number, record in enumerate(records, 1):
            yield f"{file}:{number}", record
    except Exception as failure:  # noqa: BLE001 - of any kind: what readers say of broken bytes
        problems.add(str(file), f"can't be read: {_in_a_line(failure)}")


def _rows(file: Path, problems: BadRecords) -> _Found:
    """CSV row by row, for the same reason as JSON lines; every value is text, an empty one None."""
    csv.field_size_limit(2**31 - 1)  # a document is longer than its default of 128 KiB
    with _lines(file, problems) as lines:
        reader = csv.reader(_decoded(lines, file, problems), strict=True)
        try:
            names = next(reader, [])
        except csv.Error as failure:
            problems.add(f"{file}:1", f"its first line, the names of fields, is not CSV: {failure}")
            return
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as failure:
                problems.add(f"{file}:{reader.line_num}", f"is not CSV: {failure}")
                continue
            if len(row) == len(names):
                values = {name: value or None for name, value in zip(names, row, strict=True)}
                yield f"{file}:{reader.line_num}", values
            elif row:
                what = f"has {len(row)} fields, and the first line names {len(names)}"
                problems.add(f"{file}:{reader.line_num}", what)


def _json_lines(file: Path, problems: BadRecords) -> _Found:
    """Line by line, so that a broken one can be named and left out (`datasets` gives up there)."""
    with _lines(file, problems) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                # bytes would be decoded with half pairs let through
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\u" in line:
                    json.dumps(record, ensure_ascii=False).encode()
            except UnicodeDecodeError as failure:
                problems.add(place, f"is not UTF-8: {failure}")
            except UnicodeEncodeError:
                problems.add(place, "holds half of a UTF-16 pair, which is no character")
            except (ValueError, RecursionError) as failure:
                problems.add(place, f"is not JSON: {failure}")
            else:
                if isinstance(record, dict):
                    yield place, record
                else:
                    problems.add(place, "is not a JSON object")


def _integer_lines(file: Path, problems: BadRecords) -> _Found:
    """A sequence of item ids a line, separated by spaces or commas."""
    with _lines(file, problems) as lines:
        for number, line in enumerate(lines, 1):
            words = line.replace(b",", b" ").split()
            if not words:
                continue
            if all(word.isdigit() and len(word) <= _DIGITS for word in words):
                yield f"{file}:{number}", {"items": [int(word) for word in words]}
            else:
                problems.add(f"{file}:{number}", "is not a line of item ids, whole numbers")


@contextmanager
def _lines(file: Path, problems: BadRecords) -> Iterator[Iterator[bytes]]:
    """The lines of a file; where it can't be read on, they end there, and the problem is noted."""

    def read(stream: IO[bytes]) -> Iterator[bytes]:
        try:
            yield from stream
        except _UNREADABLE as failure:
            problems.add(str(file), f"can't be read: {failure}")

    try:
        stream = _open(file)
    except _UNREADABLE as failure:
        problems.add(str(file), f"can't be read: {failure}")
        yield iter(())
        return
    with stream:
        yield read(stream)


def _decoded(lines: Iterator[bytes], file: Path, problems: BadRecords) -> Iterator[str]:
    """Lines as text; one that is not UTF-8 is left out, and empty so that the others keep their
    numbers.
    """
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except ValueError as failure:
            problems.add(f"{file}:{number}", f"is not UTF-8: {failure}")
            yield "\n"


def _in_a_line(failure: BaseException) -> str:
    cause = failure.__cause__ if failure.__cause__ is not None else failure
    return first_line(cause)


def first_line(failure: BaseException) -> str:
    """Return the first line of an exception's message, or its type if that is empty."""
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__


def _of_hub(origin: DataSource) -> _Found:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        records = load_dataset(
            origin.hub_name, origin.hub_config, split=origin.hub_split, streaming=True
        )
        for number, record in enumerate(records, 1):
            yield f"{origin.hub_name}:{number}", record
    except (DatasetsError, OSError, ValueError) as failure:
        raise DataError(
            f"the Hub data set `{origin.hub_name}` can't be read: {failure}",
            where=Where(key="data"),
            hint=_hub_hint(failure),
        ) from failure


def _hub_hint(failure: Exception) -> str:
    """Advise on an error of the Hub."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache: unset it, or name local files"
    if isinstance(failure, DatasetNotFoundError):
        return "is the name right? A private or gated one needs `hf auth login`"
    if isinstance(failure, ConnectionError):
        return "is there a network? Without one, download it elsewhere and name the files"
    return "its configuration and split are `name` and `split` of a source in the recipe"


_OWN = {".jsonl": _json_lines, ".csv": _rows}  # formats whose broken records can be named
