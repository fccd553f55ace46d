"""`dslm doctor --measure -H`: links of hosts, measured as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dslm.cluster.devices import device_named
from dslm.cluster.measurement import LinkMeasurement
from dslm.lifecycle.links import judged
from tests.cluster.namespaces import MakeHosts
from tests.support.warm import warm_dslm

Links = dict[str, list[float]]  # latency in seconds and bytes a second, by collective
_MEGABITS = 100
_DELAY = 20  # milliseconds
_PAYLOAD = 1448 / 1514  # of an Ethernet frame, what TCP carries


@pytest.mark.hosts
@pytest.mark.slow
def test_a_planted_delay_and_bandwidth_are_measured_within_a_tenth(
    hosts: MakeHosts, tmp_path: Path
) -> None:
    cluster = hosts(2)
    hostfile = cluster.hostfile(tmp_path, slots=1)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def measure() -> Links:
        argv = [*warm_dslm(), "doctor", "--measure", "-H", str(hostfile), "--json"]
        done = cluster.head.run(argv, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        links: dict[str, Links] = json.loads(done.stdout)["links"]
        return links["between"]

    def measured(right: Callable[[Links], bool]) -> Links:
        """One of three: what else this machine does in the meantime slows its links, too."""
        found: Links = {}
        for _ in range(3):
            found = measure()
            if right(found):
                return found
        raise AssertionError(found)

    for host in cluster.hosts:
        host.slow_link(_MEGABITS)
    rate = pytest.approx(_MEGABITS / 8 * 1e6 * _PAYLOAD, rel=0.1)
    # the others reach less of it in gloo, whose ranks take turns in them
    slow = measured(lambda found: found["all_reduce"][1] == rate)
    cluster["w1"].delay(_DELAY)
    # gloo asks the receiver before it sends: two ranks wait for two ways
    ways = pytest.approx(2 * _DELAY / 1e3, rel=0.1)
    both = ("all_gather", "all_to_all")
    measured(lambda far: all(far[name][0] - slow[name][0] == ways for name in both))
    kept = json.loads((tmp_path / "cache/dslm/measured.json").read_text())
    assert list(kept["hosts"]) == ["w1,w2"]
    assert not list(tmp_path.glob(".dslm-links-*"))


def test_a_link_far_below_what_it_should_be_is_said_with_what_follows() -> None:
    device = device_named("h100-80gb")
    good = LinkMeasurement(
        inside={"all_reduce": (1e-5, 330e9)}, between={"all_reduce": (2e-5, 280e9)}
    )
    assert judged(good, device, 8) == []
    socket = replace(good, between={"all_reduce": (1e-4, 1.1e9)})
    said = "\n".join(judged(socket, device, 8))
    assert "NET/IB" in said
    assert "zeropp" in said
    pcie = replace(good, inside={"all_reduce": (1e-5, 10e9)})
    assert "topo -m" in "\n".join(judged(pcie, device, 8))
