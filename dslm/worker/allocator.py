"""Give the memory of large tensors back to the system as soon as they are gone, on a CPU.

glibc takes a block from its heap if it is smaller than a threshold, and the heap shrinks from its
end alone: what lies before the last block stays with the process. The threshold grows to the
largest block that was freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD); once it is set it doesn't
grow. Without that, a sample of 65,536 tokens took half a gibibyte of freed memory.
"""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 2**20  # bytes: what is smaller is used again soon


def give_large_blocks_back() -> None:
    """Let large blocks be mappings of their own, in a C library that has such a setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
