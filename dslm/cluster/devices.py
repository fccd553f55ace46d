"""Accelerators (and the CPU) as data: memory, speed, links, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from dslm.errors import OptionError, Where, did_you_mean

GIB = 2**30


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
    efficiency: float = 0.5  # of the peak, that a transformer's kernels reach when nothing waits

    def supports(self, precision: str) -> bool:
        """Return whether it computes in that format; True where its table of peaks is empty."""
        if self.kind == "cpu":
            return precision != "fp16"
        return not self.peak_flops or precision in self.peak_flops


def _gpu(
    name: str,
    gib: float,
    *,
    half: float,
    fp32: float,
    memory: float,
    link: float,
    network: float,
    source: str,
    kind: str = "cuda",
    bf16: bool = True,
    efficiency: float = 0.5,
) -> Device:
    """A row: memory in GiB, peaks in TFLOP/s, memory bandwidth and links in GB/s."""
    peaks = {"fp16": half * 1e12, "fp32": fp32 * 1e12} | ({"bf16": half * 1e12} if bf16 else {})
    return Device(
        name=name,
        kind=kind,
        memory_bytes=int(gib * GIB),
        peak_flops=peaks,
        memory_bandwidth=memory * 1e9,
        link_bandwidth=link * 1e9,
        network_bandwidth=network * 1e9,
        source=source,
        efficiency=efficiency,
    )


# Peaks: tensor cores with fp32 accumulation, dense; fp32 without TF32, which is PyTorch's default.
# Links: NVLink or PCIe per direction. Network: the usual fabric of a host with eight such devices
# (HDR 200 Gb/s per A100, NDR 400 Gb/s per H100, 100 Gb/s per host with smaller cards).
# Efficiency: what published runs reach, recomputation counted (llm-foundry, scripts/train/
# benchmarking: 0.60 to 0.79 on an A100, 0.40 to 0.59 on an H100, whose tensor cores are harder to
# feed); a half for devices of which no such tables are known. docs/planner-accuracy.md compares.
_A100 = "NVIDIA A100 datasheet, 2021"
_H100 = "NVIDIA H100 datasheet, 2023"
_TABLE = (
    _gpu(
        "a100-40gb", 40, half=312, fp32=19.5, memory=1555, link=300, network=25, efficiency=0.7,
        source=_A100,
    ),
    _gpu(
        "a100-80gb", 80, half=312, fp32=19.5, memory=2039, link=300, network=25, efficiency=0.7,
        source=_A100,
    ),
    _gpu(
        "h100-80gb", 80, half=989.4, fp32=66.9, memory=3350, link=450, network=50, efficiency=0.5,
        source=_H100,
    ),
    _gpu(
        "h100-pcie", 80, half=756, fp32=51.2, memory=2000, link=64, network=25, efficiency=0.5,
        source=_H100,
    ),
    _gpu(
        "h200", 141e9 / GIB, half=989.4, fp32=66.9, memory=4800, link=450, network=50,
        efficiency=0.5,
        source="NVIDIA H200 datasheet, 2023",
    ),
    _gpu(
        "b200", 180e9 / GIB, half=2250, fp32=75, memory=7700, link=900, network=50,
        source="NVIDIA DGX B200 datasheet, 2024",
    ),
    _gpu(
        "l4", 24, half=121, fp32=30.3, memory=300, link=32, network=3,
        source="NVIDIA L4 datasheet, 2023",
    ),
    _gpu(
        "l40s", 48, half=362, fp32=91.6, memory=864, link=32, network=6.25,
        source="NVIDIA L40S datasheet, 2023",
    ),
    _gpu(
        "a10", 24, half=125, fp32=31.2, memory=600, link=32, network=3,
        source="NVIDIA A10 datasheet, 2021",
    ),
    _gpu(
        "v100-16gb", 16, half=125, fp32=15.7, memory=900, link=150, network=12.5, bf16=False,
        source="NVIDIA V100 datasheet, 2018",
    ),
    _gpu(
        "v100-32gb", 32, half=125, fp32=15.7, memory=900, link=150, network=12.5, bf16=False,
        source="NVIDIA V100 datasheet, 2018",
    ),
    _gpu(
        "rtx-3090", 24, half=71, fp32=35.6, memory=936, link=32, network=3,
        source="NVIDIA GA102 whitepaper, 2020",
    ),
    _gpu(
        "rtx-4090", 24, half=165.2, fp32=82.6, memory=1008, link=32, network=3,
        source="NVIDIA Ada whitepaper, 2022",
    ),
    _gpu(
        "rtx-5090", 32, half=209.5, fp32=104.8, memory=1792, link=64, network=3,
        source="NVIDIA RTX Blackwell whitepaper, 2025",
    ),
    _gpu(
        "mi250x", 64, half=191.5, fp32=23.9, memory=1638, link=50, network=25, kind="rocm",
        source="AMD MI250X datasheet, 2021: one of its two dies",
    ),
    _gpu(
        "mi300x", 192, half=1307.4, fp32=163.4, memory=5300, link=64, network=50, kind="rocm",
        source="AMD MI300X datasheet, 2023",
    ),
)  # fmt: skip
DEVICES = {device.name: device for device in _TABLE}
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
    return Device(
        name=best.name,
        kind=best.kind,
        memory_bytes=memory_bytes,
        peak_flops=best.peak_flops,
        memory_bandwidth=best.memory_bandwidth,
        link_bandwidth=best.link_bandwidth,
        network_bandwidth=best.network_bandwidth,
        source=best.source,
        efficiency=best.efficiency,
    )


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
