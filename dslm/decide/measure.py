"""Measure this machine, fit its speeds to what was measured, and keep them for the planner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dslm.ask.measure import measure, models, profile_requests
from dslm.ask.profile import profiles
from dslm.cluster.detect import local_cluster, this_machine
from dslm.cluster.measured import save_measured
from dslm.cluster.measurement import Measurement
from dslm.cluster.speed import Speed
from dslm.plan.calibrate import calibrate

_LEAST_ERROR = 0.15  # a step of DeepSpeed has more to it than the passes that are fitted


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A device as it was measured, and the speeds that fit it."""

    device: str
    speeds: dict[str, Speed]  # by precision
    missed: dict[str, float]  # by how much the speeds miss the passes that they are fitted to
    found: Measurement


def measure_here(on_phase: Callable[[str], None]) -> Measured:
    """Measure the local device, fit its speeds, and keep them."""
    cluster = local_cluster()
    cuda = bool(this_machine().accelerators)
    measured = measure(ranks=cluster.world_size, cuda=cuda, on_phase=on_phase)
    precisions = sorted({one.precision for one in measured.passes})
    traced = profiles(profile_requests(precisions, cuda=cuda), on_phase)
    count = len(models(cuda=cuda))
    by_precision = {
        precision: traced[n * count : (n + 1) * count] for n, precision in enumerate(precisions)
    }
    found = calibrate(measured, by_precision)
    speeds = {name: one.speed for name, one in found.items()}
    error = max([_LEAST_ERROR, *(one.error for one in found.values())])
    save_measured(cluster.device.name, speeds, error, measured)
    return Measured(
        device=cluster.device.name,
        speeds=speeds,
        missed={name: one.error for name, one in found.items()},
        found=measured,
    )
