"""Saving beside training: DeepSpeed hands over its state, and only a copy of it in memory blocks.

An engine for DeepSpeed's `save_checkpoint` that copies a state into buffers on the host and writes
them when it is told to, on whatever thread. DeepSpeed's own decoupled engine writes out of memory
that training changes, so it has to be done before the next optimizer step; a copy has time. Where
memory has no room for one, the state is written at once.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

_SPARE = 2  # a copy is made when this many would fit into free memory

_Key = tuple[int, int]  # address and bytes of a storage


class SnapshotEngine(TorchCheckpointEngine):
    """Writes what DeepSpeed's own engine would, later."""

    def __init__(self, engine: TorchCheckpointEngine, local_ranks: int) -> None:
        super().__init__()
        self.zipfile_serialization = engine.zipfile_serialization
        self._local_ranks = local_ranks  # they share the memory of the host
        self._free: list[torch.UntypedStorage] = []  # buffers of the last time
        self._copied: list[tuple[str, bytes, dict[_Key, torch.UntypedStorage]]] = []
        self._written: list[Path] = []
        self._files: list[Path] = []  # of the checkpoint begun last, written or to be written

    def save(self, state_dict: Any, path: str) -> None:
        """Copy a state."""
        if not self._copied and not self._written:
            self._files = []  # it is the first of another checkpoint
        self._files.append(Path(path))
        frame = io.BytesIO()
        pickler = _Pickler(frame)
        pickler.dump(state_dict)
        buffers = self._buffers(pickler.storages)
        if buffers is None:
            self._write(state_dict, path, sum(size for _, size in pickler.storages))
            return
        for key, storage in pickler.storages.items():
            buffers[key].copy_(storage)
        self._copied.append((path, frame.getvalue(), buffers))

    def write(self) -> list[Path]:
        """Write what was copied; the files of every save since the last call.

        Raises:
            OSError: they could not be written.
        """
        for path, frame, buffers in self._copied:
            state = _Unpickler(io.BytesIO(frame), buffers).load()
            self._write(state, path, sum(size for _, size in buffers))
            self._free += buffers.values()
        self._copied, written, self._written = [], self._written, []
        return written

    def discard(self) -> None:
        """Remove what was written of the checkpoint begun last, to make space on the disk again.

        Other ranks still write theirs. Without their folder they would fail too, and of that
        instead of a full disk; the supervisor removes it when all have ended.
        """
        for file in self._files:
            with suppress(OSError):
                file.unlink()

    def _write(self, state: Any, path: str, size: int) -> None:
        try:
            super().save(state, path)
        except RuntimeError as failure:  # torch says no more than that writing failed
            full = shutil.disk_usage(Path(path).parent).free < size
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, os.strerror(number), path) from failure
        self._written.append(Path(path))

    def _buffers(
        self, storages: dict[_Key, torch.UntypedStorage]
    ) -> dict[_Key, torch.UntypedStorage] | None:
        """A buffer for each storage, the last time's where the size is the same; None: no room."""
        found, missing = {}, []
        for key in storages:
            size = key[1]
            same = next((n for n, free in enumerate(self._free) if free.nbytes() == size), None)
            if same is None:
                missing.append(key)
            else:
                found[key] = self._free.pop(same)
        wanted = sum(size for _, size in missing) * self._local_ranks * _SPARE
        if wanted > psutil.virtual_memory().available:
            self._free += found.values()
            return None
        return found | {key: torch.UntypedStorage(key[1]) for key in missing}


class _Pickler(pickle.Pickler):
    """Pickles a state without the content of its tensors, and collects their storages."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.DEFAULT_PROTOCOL)
        self.storages: dict[_Key, torch.UntypedStorage] = {}

    def persistent_id(self, value: Any) -> tuple[_Key, torch.dtype] | None:
        if isinstance(value, torch.storage.TypedStorage):
            storage, dtype = value._untyped_storage, value.dtype
        elif isinstance(value, torch.UntypedStorage):
            storage, dtype = value, torch.uint8
        else:
            return None
        key = storage.data_ptr(), storage.nbytes()
        self.storages[key] = storage
        return key, dtype


class _Unpickler(pickle.Unpickler):
    """Makes the state again, its tensors in the buffers."""

    def __init__(self, stream: io.BytesIO, buffers: dict[_Key, torch.UntypedStorage]) -> None:
        super().__init__(stream)
        self._buffers = buffers

    def persistent_load(self, name: tuple[_Key, torch.dtype]) -> torch.storage.TypedStorage:
        key, dtype = name
        return torch.storage.TypedStorage(
            wrap_storage=self._buffers[key], dtype=dtype, _internal=True
        )
