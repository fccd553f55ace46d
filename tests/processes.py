"""Processes that may end while one looks at them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import psutil

HANGS = 120.0  # seconds after which what is waited for never comes: no measure of speed


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


def slots_of(argv: Sequence[str]) -> dict[str, list[int]]:
    """Hosts and their slots on the command line of DeepSpeed's launcher of one host."""
    world = next(word for word in argv if word.startswith("--world_info="))
    found: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(world.partition("=")[2]))
    return found
