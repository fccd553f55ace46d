"""CUDA devices as the driver counts them.

Asked through `nvidia-smi`, since importing torch takes seconds. Facts as plain values, so that a
host can tell them to another.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from dslm.cluster.devices import Device, device_reported

_QUERY = "name,memory.total,memory.free,driver_version"


def accelerators() -> list[dict[str, Any]]:
    """The devices of this host: name, memory, free memory, driver; none when it doesn't answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse(answer)


def parse(answer: str) -> list[dict[str, Any]]:
    """The devices of nvidia-smi's CSV answer; memory in bytes, None where it says `[N/A]`."""
    found = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.rsplit(",", 3)]
        if len(fields) != 4:
            continue
        name, total, free, driver = fields
        found.append(
            {
                "name": name,
                "memory": int(total) * 2**20 if total.isdigit() else None,
                "free": int(free) * 2**20 if free.isdigit() else None,
                "driver": driver,
            }
        )
    return found


def device_of(told: Mapping[str, Any], host_memory_bytes: int) -> Device:
    """The device that was told of; one without memory of its own uses the host's (GB10)."""
    return device_reported(told["name"], told["memory"] or host_memory_bytes)
