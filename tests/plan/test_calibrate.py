"""Speeds from measured seconds: what was planted is found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dslm.cluster.devices import cpu_device
from dslm.cluster.measured import save_links, save_measured, with_links, with_measured
from dslm.cluster.measurement import LinkMeasurement, Measurement, Product, TimedPass
from dslm.cluster.speed import Speed
from dslm.plan.calibrate import calibrate, not_negative
from dslm.plan.roofline import passes
from dslm.profile.levels import ById
from tests.plan.test_plan import PROFILE

NUMBERS = Measurement(
    products=(), passes=(), memory_bandwidth=1e10, host_adam=2e8, disk_write=1e9, disk_read=1e9,
    ranks=2, date="2026-11-25", links={"all_reduce": (1e-4, 2e9)},
)  # fmt: skip
PLANTED = Speed(products=2e11, product_bytes=2e10, attention=2e11, memory=8e9, launch=2e-5)


def _measured() -> Measurement:
    products = []
    for side in (64, 256, 1024):
        seconds = 2 * side**3 / 2e11 + 3 * 4 * side**2 / 2e10 + 2e-5
        products.append(
            Product(precision="fp32", rows=side, inner=side, columns=side, element=4,
                    seconds=seconds)
        )  # fmt: skip
    runs = []
    for samples, length in ((1, 32), (2, 128), (8, 128), (1, 1024)):
        both = passes(ById(PROFILE), "plain", samples, length)
        seconds = sum(one.seconds(PLANTED, on_cpu=True) for one in both)
        runs.append(
            TimedPass(precision="fp32", model=0, samples=samples, length=length, seconds=seconds)
        )  # fmt: skip
    return replace(NUMBERS, products=tuple(products), passes=tuple(runs))


def test_planted_speeds_foresee_other_passes() -> None:
    found = calibrate(_measured(), {"fp32": [PROFILE]})["fp32"]
    assert found.error < 0.02
    for shape in ((4, 64), (2, 512), (16, 256)):
        both = passes(ById(PROFILE), "plain", *shape)
        true = sum(one.seconds(PLANTED, on_cpu=True) for one in both)
        mine = sum(one.seconds(found.speed, on_cpu=True) for one in both)
        assert mine == pytest.approx(true, rel=0.05)


def test_no_cost_is_below_what_is_possible() -> None:
    rows = [((1.0, 0.0), 1.0), ((1.0, 1.0), 0.5), ((2.0, 1.0), 1.8)]
    first, second = not_negative(rows, (0.1, 0.2))
    assert first >= 0.1
    assert second >= 0.2


def test_a_measurement_beside_other_work_gives_slow_speeds_and_no_senseless_ones() -> None:
    calm = _measured()
    passes_ = tuple(replace(one, seconds=20 * one.seconds) for one in calm.passes)
    for busy in (
        replace(calm, passes=passes_),
        replace(calm, products=tuple(replace(p, seconds=20 * p.seconds) for p in calm.products)),
    ):
        speed = calibrate(busy, {"fp32": [PROFILE]})["fp32"].speed
        assert 1e9 < speed.products < 1e12
        assert 1e7 < speed.memory < 1e12
        assert 0 <= speed.launch < 1e-2


def test_what_was_measured_is_used_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_measured("cpu", {"fp32": PLANTED}, 0.15, NUMBERS)
    links = LinkMeasurement(between={"all_reduce": (1e-3, 1e8)})
    file = save_links(["w2", "w1", "w3"], links, "2026-11-26")
    device = with_links(with_measured(cpu_device(2**30)), ["w1", "w2"])
    assert device.speed("fp32") == PLANTED
    assert device.speed("bf16") is None
    assert device.links(1, hosts=2)["all_reduce"].bandwidth == 1e8
    assert device.links(2, hosts=1)["all_reduce"].bandwidth == 2e9
    assert "2026-11-25" in device.measured
    assert "2026-11-26" in device.measured
    # other hosts have other links, and a file of another version none at all
    assert "links" not in with_links(with_measured(cpu_device(2**30)), ["w9"]).measured
    file.write_text(json.dumps({"cpu": {"peak_flops": {}}}))
    assert with_measured(cpu_device(2**30)).measured == ""
