"""Prepared data on disk: Arrow files of ragged integer columns, read without being loaded.

Every column of a sample is a list of whole numbers (token ids, a label, the bytes of an image).
The files are Arrow streams, so `datasets.Dataset.from_file` opens them too.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

_TYPES = {"mask": pa.int8(), "image": pa.uint8(), "record": pa.uint8()}  # any other column: int32
_BATCH = 4096  # samples in a record batch


@dataclass(frozen=True, slots=True)
class Ragged:
    """One column of many samples: sample i is `values[starts[i]:ends[i]]`.

    `values` may be a mapped file: to choose samples, in any order, reads none of them.
    """

    values: np.ndarray
    starts: np.ndarray  # int64
    ends: np.ndarray  # int64

    @classmethod
    def of(cls, values: np.ndarray, offsets: np.ndarray) -> Ragged:
        """Samples that lie one after the other: `offsets` has one more than there are samples."""
        return cls(values, offsets[:-1], offsets[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each sample."""
        return self.ends - self.starts

    def take(self, indices: np.ndarray) -> Ragged:
        """Return some of the samples, in this order."""
        return Ragged(self.values, self.starts[indices], self.ends[indices])


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return the start of each sample, and the end of the last one."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def dtype_of(column: str) -> np.dtype[Any]:
    """Return the number type of a column."""
    return np.dtype(_TYPES.get(column, pa.int32()).to_pandas_dtype())


def write_shard(path: Path, columns: Mapping[str, Ragged], bounds: np.ndarray) -> str:
    """Write samples into a file, whole or not at all; its checksum (blake2b).

    Args:
        path: the file.
        columns: what the samples are made of; a few thousand samples are in memory at a time.
        bounds: sample i joins the entries from `bounds[i]` to `bounds[i + 1]` of each column.
    """
    schema = pa.schema(
        [(name, pa.large_list(_TYPES.get(name, pa.int32()))) for name in sorted(columns)]
    )
    partial = path.with_name(f".{path.name}.partial")
    count = len(bounds) - 1
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, count, _BATCH):
            inside = bounds[start : min(start + _BATCH, count) + 1]
            arrays = [_array(name, columns[name], inside) for name in sorted(columns)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    checksum = checksum_of(partial)
    partial.replace(path)
    return checksum


def checksum_of(path: Path) -> str:
    """blake2b of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _array(name: str, column: Ragged, bounds: np.ndarray) -> pa.LargeListArray:
    entries = column.take(np.arange(bounds[0], bounds[-1]))
    parts = [entries[index] for index in range(len(entries))]
    values = np.concatenate(parts) if parts else column.values[:0]
    offsets = offsets_of(entries.lengths)[bounds - bounds[0]]
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, type=pa.int64()), pa.array(values, type=_TYPES.get(name, pa.int32()))
    )


class Samples(Dataset[dict[str, Any]]):
    """Samples of several files, memory-mapped: a dictionary of arrays each, with its `place`.

    They are asked for by place, epoch × length + index. A weight says how often an epoch shows the
    samples of a file: 2 twice, 0.5 every other one.
    """

    def __init__(
        self, files: Sequence[Path], weights: Sequence[float], limit: int | None = None
    ) -> None:
        self._files = files
        self._blocks: list[dict[str, Ragged]] = []
        self._starts: list[int] = []
        wanted: list[np.ndarray] = []
        total = 0
        for file, weight in zip(files, weights, strict=True):
            first = total
            for block in _blocks(file):
                self._blocks.append(block)
                self._starts.append(total)
                total += len(next(iter(block.values())))
            count = total - first
            shown = round(count * weight)  # evenly spread when fewer than there are
            stride = max(1.0, count / max(shown, 1))
            wanted.append(first + (np.arange(shown) * stride).astype(np.int64) % max(count, 1))
        plain = all(weight == 1 for weight in weights)
        self._order = None if plain or not wanted else np.concatenate(wanted)
        full = total if self._order is None else len(self._order)
        self._length = full if limit is None else min(limit, full)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = place % self._length
        if self._order is not None:
            index = int(self._order[index])
        number = bisect.bisect_right(self._starts, index) - 1
        block, row = self._blocks[number], index - self._starts[number]
        return {**{name: column[row] for name, column in block.items()}, "place": place}

    def as_dataset(self) -> Any:
        """Return the same files as a `datasets.Dataset`, for those that ask for one."""
        from datasets import Dataset as HubDataset
        from datasets import concatenate_datasets

        return concatenate_datasets([HubDataset.from_file(str(file)) for file in self._files])


def _blocks(file: Path) -> Iterator[dict[str, Ragged]]:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            yield {
                name: Ragged.of(
                    column.values.to_numpy(zero_copy_only=True),
                    column.offsets.to_numpy(zero_copy_only=True),
                )
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
