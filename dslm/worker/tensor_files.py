"""Safetensors files, written a piece at a time: tensors of any size in little memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import torch

from dslm.errors import InputError
from dslm.worker.zero_tensors import StoredTensor

_NAMES = {  # of safetensors
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
}  # fmt: skip
_PIECE = 2**24  # elements converted at a time


def write_safetensors(
    stream: IO[bytes], tensors: dict[str, StoredTensor], dtype: torch.dtype | None = None
) -> None:
    """Write one safetensors file, piece by piece; the library's own writer wants all at once.

    Args:
        stream: where to.
        tensors: in the order of the file.
        dtype: of all floating-point tensors; None: each keeps its own.

    Its `save_file` (0.8.0) doesn't copy any more, but takes tensors, converted and put together, of
    a whole file: of 1 GiB it needed 1088 MiB where this needs 176, whatever the file's size, and
    twice the CPU time. In files of 500 MB it needed 512 MiB.

    Source of the format: huggingface.co/docs/safetensors, "Format": eight bytes with the header's
    length, the header in JSON, the tensors' bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        kind = type_in_file(tensor, dtype)
        start, end = end, end + tensor.numel * kind.itemsize
        header[name] = {
            "dtype": _NAMES.get(kind) or _integer_name(kind, name),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        for piece in _pieces(tensor):
            converted = piece.to(type_in_file(tensor, dtype)).contiguous()
            stream.write(converted.view(torch.uint8).numpy().data)


def type_in_file(tensor: StoredTensor, dtype: torch.dtype | None) -> torch.dtype:
    """Floating-point tensors change their type, others (counters, indices) keep theirs."""
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _pieces(tensor: StoredTensor) -> Iterator[torch.Tensor]:
    """The elements of a tensor in order, flat, a part at a time and without the padding."""
    left = tensor.numel
    for piece in tensor.pieces:
        for part in piece.reshape(-1).split(_PIECE):
            yield part[:left].reshape(-1)
            left -= min(left, part.numel())


def _integer_name(kind: torch.dtype, name: str) -> str:
    known = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
    if kind not in known:
        raise InputError(f"`{name}` has a type that safetensors doesn't know: {kind}")
    return known[kind]
