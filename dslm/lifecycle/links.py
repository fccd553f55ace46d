"""Measure the links of hosts: one short script on every rank, as `dslm launch` starts one."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dslm.cluster.devices import LINK_SHARE, Device
from dslm.cluster.measured import save_links
from dslm.cluster.measurement import LinkMeasurement
from dslm.codec import Malformed, decode
from dslm.errors import RunFailed, Where
from dslm.lifecycle.fleet import Fleet
from dslm.lifecycle.request import ScriptRequest
from dslm.lifecycle.script import run_script
from dslm.run.directory import RunDirectory
from dslm.run.events import Event
from dslm.units import number_of

_SCRIPT = "dslm.worker.collectives"
MARK = "dslm-links: "  # before the line that the first rank prints
_FAR_BELOW = 0.5  # of what the table promises
_SLOW = 0.25  # of what ranks inside a host reach


@dataclass(slots=True)
class _Quiet:
    """A listener that passes on what takes a while."""

    tell: Callable[[str], None]

    def run_made(self, run: Path) -> None:
        """Nobody asks for the run."""

    def note(self, text: str) -> None:
        """Take in a line for people."""
        self.tell(text)

    def event(self, event: Event) -> None:
        """Nobody asks for events."""


def measure_links(fleet: Fleet, tell: Callable[[str], None]) -> LinkMeasurement:
    """Measure collectives inside hosts and between them, and keep the numbers for the planner.

    Raises:
        PreflightError: a host is not fit.
        RunFailed: the ranks failed.
    """
    found = importlib.util.find_spec(_SCRIPT)
    if found is None or found.origin is None:
        raise RunFailed(f"there is no {_SCRIPT}")
    slots = fleet.cluster.slots_per_host
    with tempfile.TemporaryDirectory(prefix=".dslm-links-", dir=Path.cwd()) as folder:
        request = ScriptRequest(
            script=Path(found.origin), arguments=(str(slots),), fleet=fleet,
            output=Path(folder) / "run",
        )  # fmt: skip
        tell(f"collectives on {len(fleet.cluster.hosts)} hosts, {number_of(slots, 'rank')} each")
        ended = run_script(request, _Quiet(tell))
        links = _printed(ended.run)
    if links is None:
        raise RunFailed(
            "the ranks measured nothing",
            where=Where(file=Path(_SCRIPT)),
            hint="`dslm hosts check HOSTFILE` says what is wrong with the hosts",
        )
    names = [host.name for host in fleet.cluster.hosts]
    save_links(names, links, time.strftime("%Y-%m-%d"))
    return links


def _printed(run: RunDirectory) -> LinkMeasurement | None:
    try:
        lines = run.rank_log(1, 0).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    last = next((line for line in reversed(lines) if MARK in line), None)
    try:
        return decode(LinkMeasurement, last.partition(MARK)[2]) if last is not None else None
    except Malformed:
        return None


def judged(links: LinkMeasurement, device: Device, slots: int) -> list[str]:
    """Say where a link is far below what it should be, and what follows for the choice."""
    between = links.between.get("all_reduce")
    inside = links.inside.get("all_reduce")
    lines: list[str] = []
    if inside is not None and device.link_bandwidth:
        expected = LINK_SHARE * device.link_bandwidth
        if inside[1] < _FAR_BELOW * expected:
            lines.append(
                f"inside a host ranks reach {_rate(inside[1])} of {_rate(expected)}: `nvidia-smi "
                "topo -m` shows whether devices meet over NVLink; peer access may be off"
            )
    if between is None:
        return lines
    rated = min(device.link_bandwidth, device.network_bandwidth * slots)
    if rated and between[1] < _FAR_BELOW * LINK_SHARE * rated:
        lines.append(
            f"between hosts ranks reach {_rate(between[1])} of {_rate(LINK_SHARE * rated)}: "
            "`NCCL_DEBUG=INFO` in the recipe's `environment` says whether it found the cards "
            "of the fabric (NET/IB) or talks over Ethernet (NET/Socket)"
        )
    if (inside is not None and between[1] < _SLOW * inside[1]) or (
        rated and between[1] < _FAR_BELOW * LINK_SHARE * rated
    ):
        lines.append(
            "so what crosses hosts is dear: `parallel.zero_stage: 2` sends a third less than "
            "stage 3, `parallel.zeropp: true` (stage 3) a quarter and gathers inside hosts in the "
            "backward pass; ranks that share layers (`parallel.tensor`) stay inside a host"
        )
    return lines


def _rate(value: float) -> str:
    return f"{value / 1e9:.3g} GB/s"
