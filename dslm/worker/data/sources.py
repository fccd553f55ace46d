"""From sources to documents: files are read here, everything else by Hugging Face `datasets`.

Bad records are counted and kept as examples; the recipe's `data.on_error` says if they are fatal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from dslm.errors import DataError, Where
from dslm.recipe.data_paths import RECORD_SUFFIXES, Origin, origins, suffix_of
from dslm.recipe.schema import Recipe

_EXAMPLES = 5


@dataclass(slots=True)
class Problems:
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
                what, where=Where(file=place), hint="`data.on_error: skip` leaves such records out"
            )
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{place}: {what}")


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents to train on and those held out or given for evaluation."""

    train: list[str]
    eval: list[str]
    problems: Problems


def read_documents(recipe: Recipe) -> Documents:
    """Read every document of a recipe and split off the held-out share.

    Raises:
        DataError: nothing could be read, or a bad record is fatal.
    """
    problems = Problems(fatal=recipe.data.on_error == "fail")
    documents = _take(recipe, origins(recipe, "train"), problems)
    if not documents:
        shown = "; ".join(problems.examples)
        raise DataError(
            "there is not one document to train on" + (f": {shown}" if shown else ""),
            where=Where(key="data.train"),
        )
    share = recipe.data.eval
    if not isinstance(share, float | int):
        return Documents(documents, _take(recipe, origins(recipe, "eval"), problems), problems)
    held_out = [is_held_out(text, share) for text in documents]
    return Documents(
        [text for text, out in zip(documents, held_out, strict=True) if not out],
        [text for text, out in zip(documents, held_out, strict=True) if out],
        problems,
    )


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share: its content decides, nothing else does."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _take(recipe: Recipe, found: list[Origin], problems: Problems) -> list[str]:
    limit = recipe.data.max_documents
    documents: list[str] = []
    for origin in found:
        for text in _texts(origin, recipe.data.text_field, problems):
            if limit is not None and len(documents) >= limit:
                return documents
            documents.append(text)
    return documents


def _texts(origin: Origin, text_field: str, problems: Problems) -> Iterator[str]:
    if origin.hub_name is not None:
        yield from _hub_texts(origin, text_field, problems)
    for file in origin.files:
        if suffix_of(file) in RECORD_SUFFIXES:
            yield from _record_texts(file, text_field, problems)
            continue
        try:
            with fsspec.open(str(file), "rt", encoding="utf-8", compression="infer") as stream:
                text = stream.read()
        except (UnicodeDecodeError, OSError, ValueError) as failure:
            problems.add(str(file), f"can't be read as UTF-8 text: {failure}")
            continue
        if text.strip():
            yield text
        else:
            problems.add(str(file), "is empty")


def _record_texts(file: Path, text_field: str, problems: Problems) -> Iterator[str]:
    if suffix_of(file) == ".jsonl":
        yield from _json_lines(file, text_field, problems)
        return
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        records = load_dataset(
            RECORD_SUFFIXES[suffix_of(file)], data_files=str(file), split="train", streaming=True
        )
        for number, record in enumerate(records, 1):
            yield from _text_of(record, text_field, f"{file}:{number}", problems)
    except (DatasetsError, OSError, ValueError) as failure:  # pyarrow's errors are ValueErrors
        problems.add(str(file), f"can't be read: {failure}")


def _json_lines(file: Path, text_field: str, problems: Problems) -> Iterator[str]:
    """Line by line, so that a broken one can be named and left out (`datasets` gives up there)."""
    import json

    with fsspec.open(str(file), "rb", compression="infer") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                record = json.loads(line)
            except ValueError as failure:
                problems.add(place, f"is not JSON: {failure}")
                continue
            if not isinstance(record, dict):
                problems.add(place, "is not a JSON object")
                continue
            yield from _text_of(record, text_field, place, problems)


def _text_of(
    record: dict[str, object], text_field: str, place: str, problems: Problems
) -> Iterator[str]:
    text = record.get(text_field)
    if text_field not in record:
        fields = ", ".join(f"`{name}`" for name in record)
        problems.add(place, f"has no field `{text_field}` (data.text_field), only {fields}")
    elif not isinstance(text, str):
        problems.add(place, f"its `{text_field}` is no text but {type(text).__name__}")
    elif not text.strip():
        problems.add(place, f"its `{text_field}` is empty")
    else:
        yield text


def _hub_texts(origin: Origin, text_field: str, problems: Problems) -> Iterator[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        records = load_dataset(
            origin.hub_name, origin.hub_config, split=origin.hub_split, streaming=True
        )
        for number, record in enumerate(records, 1):
            yield from _text_of(record, text_field, f"{origin.hub_name}:{number}", problems)
    except (DatasetsError, OSError, ValueError) as failure:
        raise DataError(
            f"the Hub data set `{origin.hub_name}` can't be read: {failure}",
            where=Where(key="data.train"),
            hint="is there a network, does it exist, and does it need `hf auth login`?",
        ) from failure
