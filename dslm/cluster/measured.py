"""Measurements of `dslm doctor --measure` on this machine, kept in the user's cache.

The planner takes these numbers instead of the table's for the device that they belong to.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from dslm.cluster.devices import Device
from dslm.files import cache_folder, write_json


def measured_file() -> Path:
    """Return the file of measurements, below `$XDG_CACHE_HOME/dslm` or `~/.cache/dslm`."""
    return cache_folder(os.environ) / "dslm/measured.json"


def save_measured(device: str, numbers: dict[str, object]) -> Path:
    """Keep the numbers of a device; those of others stay."""
    file = measured_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**_all(file), device: numbers})
    return file


def with_measured(device: Device) -> Device:
    """Return the device with what was measured of it, if anything was."""
    found = _all(measured_file()).get(device.name)
    if not isinstance(found, dict):
        return device
    try:
        return replace(
            device,
            peak_flops={k: float(v) for k, v in found["peak_flops"].items()},
            memory_bandwidth=float(found["memory_bandwidth"]),
            link_bandwidth=float(found["link_bandwidth"] or device.link_bandwidth),
            source=f"measured here, {found['date']}",
        )
    except (KeyError, TypeError, ValueError):
        return device  # written by another version: measured anew when asked


def _all(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
