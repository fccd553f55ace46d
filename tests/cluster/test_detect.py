"""Which devices a local run takes, on machines that this one is not."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pynvml
import pytest

from dslm.cluster import nvidia
from dslm.cluster.detect import Machine, local_cluster
from dslm.cluster.devices import device_named, device_reported
from dslm.errors import OptionError

GIB = 2**30
CPU = Machine(accelerators=(), visible=(), memory_bytes=24 * GIB, cores=2)
EIGHT = (device_named("h100"),) * 8


def _gpus(*visible: int) -> Machine:
    return Machine(accelerators=EIGHT, visible=visible, memory_bytes=512 * GIB, cores=64)


def test_a_cpu_gets_one_rank_unless_more_are_asked_for() -> None:
    assert local_cluster(machine=CPU).world_size == 1
    assert local_cluster(machine=CPU, ranks=2).world_size == 2
    assert local_cluster(machine=CPU, ranks=2).device.memory_bytes == 12 * GIB
    assert local_cluster(machine=CPU, ranks=2, num_gpus=1).world_size == 1


def test_more_ranks_than_slots_are_refused() -> None:
    with pytest.raises(OptionError, match="64 ranks"):
        local_cluster(machine=CPU, num_gpus=64)
    with pytest.raises(OptionError, match="9 ranks"):
        local_cluster(machine=_gpus(*range(8)), num_gpus=9)


def test_all_visible_devices_are_used() -> None:
    assert local_cluster(machine=_gpus(*range(8))).hosts[0].devices == tuple(range(8))
    assert local_cluster(machine=_gpus(4, 5)).hosts[0].devices == (4, 5)
    assert local_cluster(machine=_gpus(4, 5), num_gpus=1).hosts[0].devices == (4,)


def test_filters_count_as_the_driver_does() -> None:
    assert local_cluster(machine=_gpus(*range(8)), include="localhost:0,2").hosts[0].devices == (
        0,
        2,
    )
    assert local_cluster(machine=_gpus(*range(8)), exclude="localhost:0").world_size == 7


@pytest.mark.parametrize(
    ("product", "gib", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 40, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 80, "h100-80gb"),
        ("NVIDIA H100 PCIe", 80, "h100-pcie"),
        ("Tesla V100-SXM2-16GB", 16, "v100-16gb"),
        ("NVIDIA GeForce RTX 4090", 24, "rtx-4090"),
        ("NVIDIA L40S", 45, "l40s"),
    ],
)
def test_what_the_driver_reports_is_found_in_the_table(product: str, gib: int, name: str) -> None:
    device = device_reported(product, gib * GIB)
    assert device.name == name
    assert device.memory_bytes == gib * GIB


def test_an_unknown_device_can_be_trained_on_but_has_no_speed() -> None:
    device = device_reported("NVIDIA Quantum 9000", 8 * GIB)
    assert device.peak_flops == {}
    assert device.supports("bf16")
    with pytest.raises(OptionError, match="h1000"):
        device_named("h1000")


UUIDS = ("GPU-8932f937-d72c", "GPU-8932aaaa-0000", "GPU-fef8089b-a4ab")


@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("2,0", (2, 0)),
        (" 1 , 2 ", (1, 2)),
        ("1,7,0", (1,)),
        ("1,nonsense,0", (1,)),
        ("GPU-fef8", (2,)),
        ("gpu-FEF8089B-a4ab,0", (2, 0)),
        ("GPU-8932f,GPU-8932a", (0, 1)),
        ("GPU-0000", ()),
    ],
)
def test_the_visible_devices_are_those_that_cuda_takes(
    setting: str | None, devices: tuple[int, ...]
) -> None:
    assert nvidia.visible_devices(setting, UUIDS) == devices


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("MIG-GPU-8932f937-d72c/1/0", "MIG instance"),
        ("MIG-4b9f0a6e", "MIG instance"),
        ("GPU-8932", "matches 2 devices"),
        ("0,GPU-8932f", "device 0 twice"),
    ],
)
def test_what_can_not_be_launched_on_is_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        nvidia.visible_devices(setting, UUIDS)


class _Driver:
    """What NVML answers on a host with an H100 and a GB10, whose memory is the host's."""

    MEMORY: ClassVar = {0: SimpleNamespace(total=81559 * 2**20, free=81002 * 2**20)}

    @staticmethod
    def memory(handle: int) -> SimpleNamespace:
        if handle not in _Driver.MEMORY:
            raise pynvml.NVMLError_NotSupported(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return _Driver.MEMORY[handle]


def test_what_the_driver_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"580.95.05",  # bytes before NVML's binding 12
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": _Driver.memory,
        "nvmlDeviceGetName": ["NVIDIA H100 80GB HBM3", "NVIDIA GB10"].__getitem__,
        "nvmlDeviceGetUUID": UUIDS.__getitem__,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    first, second = nvidia.accelerators()
    assert (first["name"], first["free"]) == ("NVIDIA H100 80GB HBM3", 81002 * 2**20)
    assert (first["driver"], first["uuid"]) == ("580.95.05", UUIDS[0])
    assert second["memory"] is None
    assert nvidia.device_of(second, 128 * GIB).memory_bytes == 128 * GIB


def test_without_a_driver_there_are_no_devices_and_no_error() -> None:
    script = "from dslm.cluster.nvidia import accelerators; print(accelerators())"
    hidden = {**os.environ, "LD_LIBRARY_PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=hidden
    )
    assert done.stdout.startswith("[")
