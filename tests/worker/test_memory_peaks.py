"""Measured peaks: each phase has its own, and the plan stands beside them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from dslm.worker import memory_peaks
from dslm.worker.memory_peaks import MEASURED_STEPS, Measure, Peaks, accuracy, estimate

MIB = 2**20
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="measures the process's memory")
can_reset = pytest.mark.skipif(
    not Peaks().measures, reason="this machine doesn't let a process reset its peak"
)


@can_reset
def test_a_phase_has_the_peak_of_what_lived_in_it() -> None:
    peaks = Peaks()
    peaks.end("before")
    large = torch.ones(64 * MIB)  # 256 MiB
    del large
    peaks.end("large")
    peaks.end("after")
    assert peaks.phases["large"] > peaks.phases["before"] + 200 * MIB
    assert peaks.phases["after"] < peaks.phases["large"] - 200 * MIB
    assert peaks.overall() == peaks.phases["large"]


def test_where_a_peak_can_not_be_reset_only_the_highest_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_peaks, "_CLEAR", tmp_path / "no" / "clear_refs")
    peaks = Peaks()
    assert not peaks.measures
    large = torch.ones(64 * MIB)
    peaks.end("large")
    assert peaks.phases == {}
    assert peaks.overall() > large.nbytes


@can_reset
def test_phases_are_told_apart_in_the_first_steps_only(tmp_path: Path) -> None:
    measure = Measure(Peaks())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    engine = type("Engine", (), {"basic_optimizer": optimizer})()
    nothing = (TrainingArguments("unused", report_to="none"), TrainerState(), TrainerControl())
    for _ in range(MEASURED_STEPS + 2):
        measure.before_forward(engine)
        measure.peaks.end("forward")
        optimizer.step()
        measure.on_step_end(*nothing)
    assert {"forward", "backward", "step"} <= set(measure.peaks.phases)
    assert not measure.peaks.measures
    assert measure.step_seconds is not None
    plan = {
        "memory": {"device": {"total": 2 * measure.peaks.overall(), "phases": {"forward": 1}}},
        "time": None,
    }
    file = tmp_path / "plan.json"
    assert accuracy(file, measure, 0).difference is None
    file.write_text(json.dumps(plan))
    found = accuracy(file, measure, 0)
    assert found.difference == pytest.approx(1.0, abs=0.01)
    assert found.predicted_step_seconds is None


def test_early_in_a_run_its_time_and_cost_are_corrected_by_its_own_steps(tmp_path: Path) -> None:
    measure = Measure(Peaks())
    nothing = (TrainingArguments("unused", report_to="none"), TrainerState(), TrainerControl())
    file = tmp_path / "plan.json"
    time = {"step_seconds": 1e-9, "total_seconds": 2e-7, "cost": 3.0}
    file.write_text(json.dumps({"time": time}))
    assert estimate(file, measure, 0, 200) is None
    for _ in range(MEASURED_STEPS + 1):
        measure.on_step_end(*nothing)
    assert estimate(file, measure, 9, 200) is None  # 4.5 %
    found = estimate(file, measure, 10, 200)
    assert found is not None
    assert measure.step_seconds is not None
    assert found.seconds == pytest.approx(200 * measure.step_seconds)
    assert found.predicted_seconds == pytest.approx(2e-7)
    assert found.cost == pytest.approx(3.0 * measure.step_seconds / 1e-9)
    file.unlink()
    alone = estimate(file, measure, 10, 200)
    assert alone is not None
    assert alone.predicted_seconds is alone.cost is None


_HOLES = """
import resource, sys
from pathlib import Path
from dslm.worker.allocator import give_large_blocks_back

if sys.argv[1] == "back":
    give_large_blocks_back()
for count in (3, 32):  # the first ones raise the threshold
    blocks = [b"x" * 2**23 for _ in range(count)]
    last = blocks.pop()
    blocks.clear()
resident = int(Path("/proc/self/statm").read_text().split()[1])
print(resident * resource.getpagesize() // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_of_large_blocks_is_given_back() -> None:
    kept, given = (
        int(subprocess.check_output([sys.executable, "-c", _HOLES, how])) for how in ("", "back")
    )
    assert kept - given > 200  # MiB, of 248 that were freed
