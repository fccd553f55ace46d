"""Tokenise and pack once, then read from disk: what a run trains and evaluates on.

The first rank of a host does the work under a lock, the others wait there (a file lock: no
collective that could time out). The result lies in a cache named by a fingerprint of sources,
tokenizer and settings, as memory-mapped arrays of shape (N, L); a manifest is written last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from dslm.errors import DataError, Where
from dslm.files import write_json
from dslm.recipe.data_paths import origins
from dslm.recipe.schema import Recipe
from dslm.worker.data.packing import pack, unpacked
from dslm.worker.data.sources import read_documents

_FORMAT = 1  # counted up when the arrays change their meaning
_BATCH = 256  # documents tokenised at a time
IGNORED = -100  # label of a token that is not predicted, as transformers' losses have it


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a run trains on: samples, and a few numbers about them."""

    train: PackedDataset
    eval: PackedDataset | None
    statistics: dict[str, Any]


class PackedDataset(Dataset[dict[str, Any]]):
    """Samples from memory-mapped arrays: `input_ids`, `position_ids`, `labels` (L,), `place`.

    They are asked for by place, epoch × length + index.
    """

    def __init__(self, folder: Path, name: str, limit: int | None = None) -> None:
        self._tokens = np.load(folder / f"{name}-tokens.npy", mmap_mode="r")[:limit]
        self._positions = np.load(folder / f"{name}-positions.npy", mmap_mode="r")[:limit]

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = place % len(self)
        tokens = torch.from_numpy(self._tokens[index].astype(np.int64))
        positions = torch.from_numpy(self._positions[index].astype(np.int64))
        # neither padding nor the first token of a document is predicted from what stands before
        labels = torch.where(positions > 0, tokens, IGNORED)
        padding = positions < 0
        # padding is a document of its own: positions 0, 1, 2 …
        positions = torch.where(padding, padding.cumsum(0) - 1, positions)
        return {"input_ids": tokens, "position_ids": positions, "labels": labels, "place": place}


def prepare(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    on_phase: Callable[[str], None] = lambda detail: None,
) -> Prepared:
    """Prepare the data of a recipe, or find it prepared.

    Args:
        recipe: the resolved recipe, of a task on plain text.
        tokenizer: the tokenizer of the run.
        cache: folder of all prepared data.
        on_phase: told what is going on, for people.

    Raises:
        DataError: there is nothing to train on, or a bad record is fatal.
    """
    folder = cache / fingerprint(recipe, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not manifest.is_file():
            write_json(manifest, _write_arrays(recipe, tokenizer, folder, on_phase))
    statistics = json.loads(manifest.read_text())
    limit = recipe.evaluation.max_samples
    return Prepared(
        train=PackedDataset(folder, "train"),
        eval=PackedDataset(folder, "eval", limit) if statistics["eval"]["samples"] else None,
        statistics=statistics,
    )


def fingerprint(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for the prepared data: it changes with sources, tokenizer and settings."""
    digest = hashlib.blake2b(digest_size=12)
    settings = recipe.data.model_dump(mode="json", exclude={"workers", "sharding"})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    digest.update(json.dumps([_FORMAT, recipe.task, settings, vocabulary]).encode())
    for key in ("train", "eval"):
        for origin in origins(recipe, key):
            for file in origin.files:
                status = file.stat()
                digest.update(f"{file.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where prepared data is kept: `$XDG_CACHE_HOME/dslm`, `~/.cache/dslm` by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dslm"


def _write_arrays(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    on_phase: Callable[[str], None],
) -> dict[str, Any]:
    on_phase("reading documents")
    documents = read_documents(recipe)
    length = recipe.data.sequence_length
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    statistics: dict[str, Any] = {
        "bad_records": documents.problems.count,
        "examples": documents.problems.examples,
    }
    for name, texts in (("train", documents.train), ("eval", documents.eval)):
        on_phase(f"tokenising {len(texts)} documents ({name})")
        ids = list(_tokenise(texts, tokenizer))
        arrange = pack if recipe.data.packing else unpacked
        tokens, positions = arrange(ids, length, pad)
        if name == "train" and not len(tokens):
            raise DataError("there is not one token to train on", where=Where(key="data.train"))
        np.save(folder / f"{name}-tokens.npy", tokens)
        np.save(folder / f"{name}-positions.npy", positions)
        used = int((positions >= 0).sum())
        statistics[name] = {
            "documents": len(texts),
            "samples": len(tokens),
            "tokens": used,
            "efficiency": round(used / max(1, tokens.size), 5),
        }
    return statistics


def _tokenise(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each document, the end-of-text token last."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(texts[start : start + _BATCH], add_special_tokens=False)
        for ids in batch["input_ids"]:
            yield ids + end
