"""Measurements of `dslm doctor --measure`, kept in the user's cache.

The planner takes these numbers instead of the table's for the device, and the links between the
hosts, that they belong to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dslm.cluster.devices import Device
from dslm.cluster.measurement import LinkMeasurement, LinkNumbers, Measurement
from dslm.cluster.speed import Link, Speed
from dslm.codec import Malformed, Strict, decode, encode
from dslm.files import cache_folder, write_json

FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptDevice(Strict):
    """The numbers of one kind of device."""

    date: str
    error: float
    speeds: Mapping[str, Speed]
    memory_bandwidth: float
    host_adam: float
    disk_read: float
    inside: LinkNumbers = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptLinks(Strict):
    """The links of some hosts."""

    date: str
    links: LinkMeasurement


@dataclass(frozen=True, kw_only=True, slots=True)
class _File(Strict):
    format: int = 0
    devices: Mapping[str, KeptDevice] = field(default_factory=dict)
    hosts: Mapping[str, KeptLinks] = field(default_factory=dict)  # names, sorted, with commas


def measured_file() -> Path:
    """Return the file of measurements, below `$XDG_CACHE_HOME/dslm` or `~/.cache/dslm`."""
    return cache_folder(os.environ) / "dslm/measured.json"


def save_measured(
    device: str, speeds: Mapping[str, Speed], error: float, found: Measurement
) -> Path:
    """Keep the numbers of a device; those of others stay."""
    kept = KeptDevice(
        date=found.date,
        error=error,
        speeds=speeds,
        memory_bandwidth=found.memory_bandwidth,
        host_adam=found.host_adam,
        disk_read=found.disk_read,
        inside=found.links,
    )
    file = _read()
    return _write(replace(file, devices={**file.devices, device: kept}))


def save_links(hosts: Sequence[str], links: LinkMeasurement, date: str) -> Path:
    """Keep what was measured inside and between hosts."""
    file = _read()
    kept = KeptLinks(date=date, links=links)
    return _write(replace(file, hosts={**file.hosts, ",".join(sorted(hosts)): kept}))


def with_measured(device: Device) -> Device:
    """Return the device with what was measured of it, if anything was."""
    found = _read().devices.get(device.name)
    if found is None:
        return device
    return replace(
        device,
        speeds=found.speeds,
        memory_bandwidth=found.memory_bandwidth,
        host_adam=found.host_adam,
        disk_bandwidth=found.disk_read,
        inside=_links(found.inside),
        error=found.error,
        measured=f"measured here, {found.date}",
    )


def with_links(device: Device, hosts: Sequence[str]) -> Device:
    """Return the device with the links that were measured between these hosts, or more of them."""
    asked = set(hosts)
    fitting = [
        (len(names.split(",")), kept)
        for names, kept in _read().hosts.items()
        if asked <= set(names.split(","))
    ]
    if not fitting:
        return device
    best = min(fitting, key=lambda pair: pair[0])[1]
    return replace(
        device,
        inside=_links(best.links.inside) or device.inside,
        between=_links(best.links.between) or device.between,
        measured=f"{device.measured or device.source}; links measured, {best.date}",
    )


def _links(found: LinkNumbers) -> dict[str, Link]:
    return {name: Link(latency, rate) for name, (latency, rate) in found.items()}


def _read() -> _File:
    try:
        found = decode(_File, measured_file().read_bytes())
    except (OSError, Malformed):
        found = _File()
    # one of another version is measured anew when asked
    return found if found.format == FORMAT else _File(format=FORMAT)


def _write(content: _File) -> Path:
    file = measured_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, encode(content))
    return file
