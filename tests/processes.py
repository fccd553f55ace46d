"""Processes that may end while one looks at them."""

from __future__ import annotations

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """The arguments of a process; empty when it is gone, or a zombie."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs still; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
