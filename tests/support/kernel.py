"""What a test needs of this machine's kernel, or is skipped for."""

from __future__ import annotations

import os

import pytest


def _readable() -> bool:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


reads_kernel_log = pytest.mark.skipif(
    not _readable(), reason="this host keeps its kernel's log to itself"
)
