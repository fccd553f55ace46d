"""Which devices a local run takes, on machines that this one is not."""

from __future__ import annotations

import pytest

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
