"""What `dslm doctor --measure` measured: speeds by precision, memory, links, disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from dslm.cluster.measurement import LinkNumbers
    from dslm.decide.measure import Measured

_UNSEEN = 1e20  # a rate that no measurement depended on


def measured_tables(measured: Measured) -> Iterator[Table]:
    """Lay out the measurements of one device."""
    speeds, found = measured.speeds, measured.found
    table = Table("measured", *speeds, "", box=None, header_style="bold")
    rows = {
        ("matrix products, large ones", "GFLOP/s"): [s.products / 1e9 for s in speeds.values()],
        ("bytes of products", "GB/s"): [s.product_bytes / 1e9 for s in speeds.values()],
        ("attention", "GFLOP/s"): [s.attention / 1e9 for s in speeds.values()],
        ("bytes of other operations", "GB/s"): [s.memory / 1e9 for s in speeds.values()],
        ("each operation", "µs"): [s.launch * 1e6 for s in speeds.values()],
    }
    for (name, unit), values in rows.items():
        table.add_row(name, *(_number(value) for value in values), unit)
    yield table
    rates = Table("", "", "", box=None, show_header=False)
    rates.add_row("memory, copied", _number(found.memory_bandwidth / 1e9), "GB/s")
    rates.add_row("Adam on the host", _number(found.host_adam / 1e6), "M parameters/s")
    rates.add_row("disk, written", _number(found.disk_write / 1e9), "GB/s")
    rates.add_row("disk, read", _number(found.disk_read / 1e9), "GB/s")
    yield rates
    if found.links:
        yield links_table(found.links, f"between {found.ranks} ranks here")


def links_table(links: LinkNumbers, title: str) -> Table:
    """Lay out collectives: latency and bandwidth of each."""
    table = Table(title, "latency", "bandwidth", box=None, header_style="bold")
    for name, (latency, rate) in links.items():
        table.add_row(name.replace("_", "-"), f"{latency * 1e6:.0f} µs", f"{rate / 1e9:.3f} GB/s")
    return table


def _number(value: float) -> str:
    return "-" if value > _UNSEEN else f"{value:.3g}"
