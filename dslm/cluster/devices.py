"""Accelerators (and the CPU) as data: memory, speed, links, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace

from dslm.cluster.speed import COLLECTIVES, Link, Links, Speed
from dslm.errors import OptionError, Where, did_you_mean

GIB = 2**30
# Share of the rated bandwidth that operations bound by memory reach: BabelStream on A100 and H100
# (0.85 to 0.92). Of a link's, that ring collectives reach: nccl-tests, bus bandwidth.
MEMORY_SHARE = 0.85
LINK_SHARE = 0.75
LINK_LATENCY = 2e-5  # of a small NCCL collective between two ranks: nccl-tests, 10 to 30 µs
LAUNCH_SECONDS = 5e-6  # a kernel launch with PyTorch's dispatch: pytorch.org, CUDA graphs, 2021
HOST_ADAM_RATE = 1.2e9  # parameters/s of DeepSpeed's CPU Adam on a server, DeepSpeed blog 2020
NVME_BANDWIDTH = 5e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One kind of device, as its vendor describes it.

    Memory in bytes, FLOP/s dense (no sparsity), bandwidths in bytes per second.
    """

    name: str
    kind: str  # cpu | cuda | rocm
    memory_bytes: int
    peak_flops: dict[str, float]  # by precision: bf16, fp16, fp32
    memory_bandwidth: float
    link_bandwidth: float  # between devices of one host, per device and direction
    network_bandwidth: float  # between hosts, per device and direction
    source: str
    products: float = 0.7  # share of the peak that large matrix products reach
    attention: float = 0.4  # the same of flash attention, every score counted
    error: float = 0.3  # by how much a predicted step may well be off
    measured: str = ""  # when its speeds were measured; empty: they follow from the table
    speeds: Mapping[str, Speed] = field(default_factory=dict)  # measured, by precision
    inside: Mapping[str, Link] = field(default_factory=dict)  # measured between ranks of a host
    between: Mapping[str, Link] = field(default_factory=dict)  # measured between hosts
    host_adam: float = HOST_ADAM_RATE
    disk_bandwidth: float = NVME_BANDWIDTH

    def speed(self, precision: str) -> Speed | None:
        """Return what operations reach, measured or by the table; None where neither is known."""
        if precision in self.speeds:
            return self.speeds[precision]
        peak = self.peak_flops.get(precision)
        if not peak or not self.memory_bandwidth:
            return None
        memory = MEMORY_SHARE * self.memory_bandwidth
        return Speed(
            products=self.products * peak,
            product_bytes=memory,
            attention=self.attention * peak,
            memory=memory,
            launch=LAUNCH_SECONDS,
        )

    def links(self, slots: int, *, hosts: int) -> Links:
        """Return the links of ranks, `slots` on each of `hosts`, by collective.

        A ring enters each host once, and all its network cards carry it together: the bus
        bandwidth of nccl-tests on hosts with a card for each device comes near their sum.
        """
        known = self.between if hosts > 1 else self.inside
        rate = self.link_bandwidth
        if hosts > 1:
            rate = min(rate or self.network_bandwidth, self.network_bandwidth * slots)
        table = Link(LINK_LATENCY, LINK_SHARE * rate) if rate else None
        return {name: link for name in COLLECTIVES if (link := known.get(name, table)) is not None}

    def supports(self, precision: str) -> bool:
        """Return whether it computes in that format; True where its table of peaks is empty."""
        if self.kind == "cpu":
            return precision != "fp16"
        return not self.peak_flops or precision in self.peak_flops


# Products, attention and the error of a generation: fitted by benchmarks/planner_published.py on
# half of the rows of one source; the other half and other sources say how far off they are.
_AMPERE, _HOPPER, _OTHER = (0.77, 0.646, 0.12), (0.628, 0.366, 0.12), (0.7, 0.4, 0.3)
_FITS = {
    **dict.fromkeys(("a100-40gb", "a100-80gb"), _AMPERE),
    **dict.fromkeys(("h100-80gb", "h100-pcie", "h200"), _HOPPER),
}


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A row: memory in GiB, peaks in TFLOP/s, memory bandwidth and links in GB/s."""

    name: str
    gib: float
    _: KW_ONLY
    half: float
    fp32: float
    memory: float
    link: float
    network: float
    source: str
    kind: str = "cuda"
    bf16: bool = True

    def device(self) -> Device:
        """Return the device, in bytes and seconds."""
        peaks = {"fp16": self.half * 1e12, "fp32": self.fp32 * 1e12}
        products, attention, error = _FITS.get(self.name, _OTHER)
        return Device(
            name=self.name,
            kind=self.kind,
            memory_bytes=int(self.gib * GIB),
            peak_flops=peaks | ({"bf16": self.half * 1e12} if self.bf16 else {}),
            memory_bandwidth=self.memory * 1e9,
            link_bandwidth=self.link * 1e9,
            network_bandwidth=self.network * 1e9,
            source=self.source,
            products=products,
            attention=attention,
            error=error,
        )


# Peaks: tensor cores with fp32 accumulation, dense; fp32 without TF32, which is PyTorch's default.
# Links: NVLink or PCIe per direction. Network: the usual fabric of a host with eight such devices
# (HDR 200 Gb/s per A100, NDR 400 Gb/s per H100, 100 Gb/s per host with smaller cards).
_A100 = "NVIDIA A100 datasheet, 2021"
_H100 = "NVIDIA H100 datasheet, 2023"
_TABLE = (
    _Gpu(
        "a100-40gb", 40, half=312, fp32=19.5, memory=1555, link=300, network=25,
        source=_A100,
    ),
    _Gpu(
        "a100-80gb", 80, half=312, fp32=19.5, memory=2039, link=300, network=25,
        source=_A100,
    ),
    _Gpu(
        "h100-80gb", 80, half=989.4, fp32=66.9, memory=3350, link=450, network=50,
        source=_H100,
    ),
    _Gpu(
        "h100-pcie", 80, half=756, fp32=51.2, memory=2000, link=64, network=25,
        source=_H100,
    ),
    _Gpu(
        "h200", 141e9 / GIB, half=989.4, fp32=66.9, memory=4800, link=450, network=50,
        source="NVIDIA H200 datasheet, 2023",
    ),
    _Gpu(
        "b200", 180e9 / GIB, half=2250, fp32=75, memory=7700, link=900, network=50,
        source="NVIDIA DGX B200 datasheet, 2024",
    ),
    _Gpu(
        "l4", 24, half=121, fp32=30.3, memory=300, link=32, network=3,
        source="NVIDIA L4 datasheet, 2023",
    ),
    _Gpu(
        "l40s", 48, half=362, fp32=91.6, memory=864, link=32, network=6.25,
        source="NVIDIA L40S datasheet, 2023",
    ),
    _Gpu(
        "a10", 24, half=125, fp32=31.2, memory=600, link=32, network=3,
        source="NVIDIA A10 datasheet, 2021",
    ),
    _Gpu(
        "v100-16gb", 16, half=125, fp32=15.7, memory=900, link=150, network=12.5, bf16=False,
        source="NVIDIA V100 datasheet, 2018",
    ),
    _Gpu(
        "v100-32gb", 32, half=125, fp32=15.7, memory=900, link=150, network=12.5, bf16=False,
        source="NVIDIA V100 datasheet, 2018",
    ),
    _Gpu(
        "rtx-3090", 24, half=71, fp32=35.6, memory=936, link=32, network=3,
        source="NVIDIA GA102 whitepaper, 2020",
    ),
    _Gpu(
        "rtx-4090", 24, half=165.2, fp32=82.6, memory=1008, link=32, network=3,
        source="NVIDIA Ada whitepaper, 2022",
    ),
    _Gpu(
        "rtx-5090", 32, half=209.5, fp32=104.8, memory=1792, link=64, network=3,
        source="NVIDIA RTX Blackwell whitepaper, 2025",
    ),
    _Gpu(
        "mi250x", 64, half=191.5, fp32=23.9, memory=1638, link=50, network=25, kind="rocm",
        source="AMD MI250X datasheet, 2021: one of its two dies",
    ),
    _Gpu(
        "mi300x", 192, half=1307.4, fp32=163.4, memory=5300, link=64, network=50, kind="rocm",
        source="AMD MI300X datasheet, 2023",
    ),
)  # fmt: skip
DEVICES = {row.name: row.device() for row in _TABLE}
_ALIASES = {
    "a100": "a100-80gb", "h100": "h100-80gb", "h100-sxm": "h100-80gb", "v100": "v100-32gb",
    "h200-141gb": "h200", "b200-180gb": "b200", "3090": "rtx-3090", "4090": "rtx-4090",
    "5090": "rtx-5090",
}  # fmt: skip


def device_named(name: str) -> Device:
    """Return a device of the table.

    Raises:
        OptionError: the name is unknown.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    device = DEVICES.get(_ALIASES.get(key, key))
    if device is None:
        known = [*DEVICES, *_ALIASES]
        raise OptionError(
            f"there is no device `{name}`",
            where=Where(key="--device"),
            hint=did_you_mean(key, known) or f"known: {', '.join(DEVICES)}",
        )
    return device


def device_reported(product: str, memory_bytes: int) -> Device:
    """The device that a driver calls `product` ("NVIDIA A100-SXM4-80GB"), with its own memory.

    One that is not in the table has no known speed: it can be trained on, and planned for memory.
    """
    words = product.lower().replace("-", " ").split()
    best: Device | None = None
    for device in DEVICES.values():
        parts = device.name.replace("-", " ").split()
        if parts[0] == "rtx":
            parts = parts[1:]
        is_pcie = "pcie" in words
        if parts[0] not in words or (device.name == "h100-pcie") != (is_pcie and "h100" in words):
            continue
        off = abs(device.memory_bytes - memory_bytes)
        if best is None or off < abs(best.memory_bytes - memory_bytes):
            best = device
    if best is None:
        return Device(
            name=product,
            kind="cuda",
            memory_bytes=memory_bytes,
            peak_flops={},
            memory_bandwidth=0.0,
            link_bandwidth=0.0,
            network_bandwidth=0.0,
            source="reported by the driver",
        )
    return replace(best, memory_bytes=memory_bytes)


def cpu_device(memory_bytes: int) -> Device:
    """Return the device of a rank on a CPU with this much host memory; its speed is unknown."""
    return Device(
        name="cpu",
        kind="cpu",
        memory_bytes=memory_bytes,
        peak_flops={},
        memory_bandwidth=0.0,
        link_bandwidth=0.0,
        network_bandwidth=0.0,
        source="memory: this host's, shared evenly by its ranks",
    )
