"""Tokenise and pack once, then read from disk: what a run trains and evaluates on.

The first rank of a host does the work under a lock (`dslm.run.lock`), and the others wait for that,
telling how far it is: no collective that could time out. Documents are encoded part by part, and a
part that was written is not done again after an interruption. The result lies in a cache named by a
fingerprint of sources, tokenizer and settings; its manifest is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from dslm import files
from dslm.codec import decode, line_of
from dslm.errors import DataError, Where
from dslm.files import write_json
from dslm.recipe.data_paths import origins
from dslm.recipe.formats import BY_NAME
from dslm.recipe.schema import Recipe
from dslm.run.events import DataSummary
from dslm.run.lock import own
from dslm.units import number_of
from dslm.worker.data.encode_parts import NO_KEY, Documents, Encoder, OnPhase, encode, key_of
from dslm.worker.data.packing import best_fit, pieces_of
from dslm.worker.data.records import BadRecords, Record, read_records
from dslm.worker.data.store import Ragged, Samples, checksum_of, offsets_of, write_shard

_NO_TOKENS = ("image", "label", "mask", "good", "record")
_FORMAT = 5  # counted up when the files change their meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The prepared data of a run: samples, the names of labels, and a few numbers about them."""

    folder: Path
    train: Samples
    eval: Samples | None
    statistics: dict[str, Any]

    def summary(self) -> DataSummary:
        """Return the statistics without their lists of files."""
        return decode(DataSummary, line_of(self.statistics))

    @property
    def identity(self) -> str:
        """A name for what is trained on: the same samples in the same order have the same."""
        shards = [
            (shard["checksum"], shard["weight"]) for shard in self.statistics["train"]["shards"]
        ]
        return hashlib.blake2b(json.dumps(shards).encode(), digest_size=12).hexdigest()

    @property
    def labels(self) -> list[str]:
        """The names of the labels, by number."""
        return list(self.statistics["labels"])


def prepare(
    recipe: Recipe,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase | None,
    on_phase: OnPhase = lambda detail: None,
) -> Prepared:
    """Prepare the data of a recipe, or find it prepared.

    Args:
        recipe: the resolved recipe.
        encoder: of its task.
        tokenizer: the tokenizer of the run, if its task has one.
        on_phase: called with the current phase, for people.

    Raises:
        DataError: there is nothing to train on, or a bad record is fatal.
    """
    folder = cache_folder() / fingerprint(recipe, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    manifest, progress = folder / "manifest.json", folder / "progress"

    def tell(detail: str) -> None:
        on_phase(detail)
        progress.write_text(detail)

    if not manifest.is_file():
        with own(folder, waiting=_Waiting(progress, on_phase).tell) as hold:
            if hold.before is not None:
                tell(f"taken over from {hold.before}, which has died")
            if not manifest.is_file():
                write_json(manifest, _prepare(recipe, encoder, folder, tell))
                shutil.rmtree(folder / "parts")
                progress.unlink(missing_ok=True)
    return open_prepared(folder, recipe)


class _Waiting:
    """Reports how far another process is that prepares the same data, whenever that changes."""

    def __init__(self, progress: Path, on_phase: OnPhase) -> None:
        self._progress = progress
        self._on_phase = on_phase
        self._told = ""

    def tell(self) -> None:
        try:
            detail = self._progress.read_text()
        except OSError:
            detail = "another process prepares the data"
        if detail != self._told:
            self._told = detail
            self._on_phase(detail)


def open_prepared(folder: Path, recipe: Recipe) -> Prepared:
    """Return the prepared data in a folder.

    Raises:
        DataError: a file of it has another size than its manifest says.
    """
    statistics = json.loads((folder / "manifest.json").read_text())

    def samples(name: str, limit: int | None = None) -> Samples | None:
        shards = statistics[name]["shards"]
        for shard in shards:
            if (folder / shard["file"]).stat().st_size != shard["bytes"]:
                raise DataError(
                    "is damaged: its size is not what the manifest says",
                    where=Where(file=folder / shard["file"]),
                    hint=f"delete the folder `{folder}`: it is prepared again",
                )
        found = Samples([folder / s["file"] for s in shards], [s["weight"] for s in shards], limit)
        return found if len(found) else None

    train = samples("train")
    if train is None:
        raise DataError("there are no samples to train on", where=Where(key="data.train"))
    return Prepared(
        folder=folder,
        train=train,
        eval=samples("eval", recipe.evaluation.max_samples),
        statistics=statistics,
    )


def damaged_shards(prepared: Prepared) -> list[str]:
    """Return the files whose content is not what the manifest says: every byte is read."""
    return [
        shard["file"]
        for name in ("train", "eval")
        for shard in prepared.statistics[name]["shards"]
        if checksum_of(prepared.folder / shard["file"]) != shard["checksum"]
    ]


def fingerprint(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return a name for the prepared data: it changes with sources, tokenizer and settings."""
    vocabulary = template = None
    if tokenizer is not None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        words = sorted(tokenizer.get_vocab().items())
        vocabulary = backend.to_str() if backend is not None else words
        template = tokenizer.chat_template
    return source_digest(recipe, [_FORMAT, vocabulary, template])


def source_digest(recipe: Recipe, more: object) -> str:
    """A name for something made of the data: it changes with sources, settings and `more`."""
    digest = hashlib.blake2b(digest_size=12)
    settings = recipe.data.model_dump(mode="json", exclude={"workers", "sharding"})
    known = recipe.model.architecture.get("vocab_size")  # ids beyond it are refused
    if recipe.task == "grpo":  # prompts that leave no room for an answer are
        more = [more, recipe.rollout.max_tokens]
    digest.update(json.dumps([recipe.task, settings, known, more]).encode())
    for key in ("train", "eval"):
        for origin in origins(recipe, key):
            for file in origin.files:
                status = file.stat()
                digest.update(f"{file.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the folder of prepared data: `$XDG_CACHE_HOME/dslm`, `~/.cache/dslm` by default."""
    return files.cache_folder(os.environ) / "dslm"


def is_held_out(key: int, share: float) -> bool:
    """Whether a record belongs to the held-out share: its key decides, nothing else does."""
    return key < int(share * 2**64)


def training_records(recipe: Recipe, problems: BadRecords) -> Iterator[Record]:
    """Yield the records to train on, without those held out."""
    share = recipe.data.eval if isinstance(recipe.data.eval, float | int) else 0
    for record in read_records(recipe, origins(recipe, "train"), problems):
        with suppress(*NO_KEY):  # said when it is prepared
            if not is_held_out(key_of(recipe, record.values), share):
                yield record


def _prepare(recipe: Recipe, encoder: Encoder, folder: Path, on_phase: OnPhase) -> dict[str, Any]:
    problems = BadRecords(fatal=recipe.data.on_error == "fail")
    share = recipe.data.eval
    statistics: dict[str, Any] = {}
    splits: dict[str, Documents] = {}
    notes: Counter[str] = Counter()
    if isinstance(share, float | int):
        documents, notes = encode(recipe, "train", encoder, folder, problems, on_phase)
        held_out = documents.keys < np.uint64(int(share * 2**64))
        splits["train"] = documents.take(np.flatnonzero(~held_out))
        splits["eval"] = documents.take(np.flatnonzero(held_out))
    else:
        for name in ("train", "eval"):
            splits[name], more = encode(recipe, name, encoder, folder, problems, on_phase)
            notes.update(more)
    if not len(splits["train"].keys):
        shown = "; ".join(problems.examples)
        raise DataError(
            "there are no documents to train on" + (f": {shown}" if shown else ""),
            where=Where(key="data.train"),
        )
    for name, documents in splits.items():
        on_phase(f"writing {number_of(len(documents.keys), 'document')} ({name})")
        statistics[name] = _write_split(recipe, encoder, folder, name, documents)
    return {
        **statistics,
        "labels": sorted(encoder.labels, key=encoder.labels.__getitem__),
        "bad_records": problems.count,
        "examples": problems.examples,
        "formats": {name: notes[name] for name in BY_NAME if notes[name]},
        "with_tools": notes["tools"],
        "cut": notes["cut"],
    }


def _write_split(
    recipe: Recipe, encoder: Encoder, folder: Path, name: str, documents: Documents
) -> dict[str, Any]:
    """Write the files of a split: one a shard, and one more for each source with its own weight."""
    data = recipe.data
    _, first = np.unique(documents.keys, return_index=True)
    duplicates = len(documents.keys) - len(first)
    if data.deduplicate:
        documents = documents.take(np.sort(first))
    count = len(documents.keys)
    if data.shard_by == "hash":
        shard_of = (documents.keys % np.uint64(data.shards)).astype(np.int64)
    else:
        shard_of = np.arange(count) * data.shards // max(count, 1)
    weights = [origin.weight for origin in origins(recipe, name)] or [1.0]
    apart = any(weight != 1 for weight in weights)
    shards, tokens, samples = [], 0, 0
    for shard in range(data.shards):
        for source, weight in enumerate(weights if apart else [1.0]):
            inside = shard_of == shard
            if apart:
                inside &= documents.sources == source
            if not inside.any():
                continue
            chosen = documents.take(np.flatnonzero(inside))
            columns, bounds, used = _arrange(chosen, recipe, encoder)
            file = f"{name}-{shard:05}-of-{data.shards:05}"
            path = folder / (f"{file}-source-{source}.arrow" if apart else f"{file}.arrow")
            checksum = write_shard(path, columns, bounds)
            rows = len(bounds) - 1
            shards.append(
                {
                    "file": path.name,
                    "samples": rows,
                    "documents": int(inside.sum()),
                    "tokens": used,
                    "weight": weight,
                    "bytes": path.stat().st_size,
                    "checksum": checksum,
                }
            )
            tokens += used
            samples += rows
    found = {
        "documents": count,
        "duplicates": duplicates,
        "samples": samples,
        "tokens": tokens,
        "shards": shards,
    }
    if _packs(recipe, encoder) and samples:
        found["efficiency"] = round(tokens / (samples * data.sequence_length), 5)
    return found


def _packs(recipe: Recipe, encoder: Encoder) -> bool:
    return encoder.packs and recipe.data.packing


def _arrange(
    documents: Documents, recipe: Recipe, encoder: Encoder
) -> tuple[dict[str, Ragged], np.ndarray, int]:
    """Documents as samples, packed if the task packs: entries, bounds of samples, tokens."""
    columns, length = documents.columns, recipe.data.sequence_length
    count = len(documents.keys)
    if not encoder.packs:
        tokens = [c for name, c in columns.items() if name not in _NO_TOKENS]
        return columns, np.arange(count + 1), sum(int(c.lengths.sum()) for c in tokens)
    lengths = columns["input_ids"].lengths
    if recipe.data.packing:
        starts, ends = pieces_of(lengths, length)
        members = best_fit(ends - starts, length)
        order = np.array(list(chain.from_iterable(members)), dtype=np.int64)
        bounds = offsets_of(np.array([len(sample) for sample in members], dtype=np.int64))
        starts, sizes = starts[order], (ends - starts)[order]
        offsets = offsets_of(lengths)
        document = np.searchsorted(offsets, starts, side="right") - 1
        starts -= offsets[document]
    else:
        document, bounds = np.arange(count), np.arange(count + 1)
        starts, sizes = np.zeros(count, np.int64), np.minimum(lengths, length)
    found = {}
    for name, column in columns.items():
        first = column.starts[document] + starts
        found[name] = Ragged(column.values, first, first + sizes)
    found["lengths"] = Ragged.of(sizes.astype(np.int32), np.arange(len(sizes) + 1))
    return found, bounds, int(sizes.sum())
