"""The fault table: do harm to a training on two real hosts, and look how long it takes.

    python -m benchmarks.faults

The hosts are namespaces (tests/cluster/namespaces.py), the training a real one under
pdsh with a checkpoint every ten steps. For each fault: the cause that the run reported,
after how many seconds, when the last process of the attempt was gone on every host, and how many
steps were lost when the run resumed. Writes its section of docs/reliability.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import Section
from dslm.run.events import CheckpointSaved, Error, Restart, Start, Step, Stop
from tests.cluster.namespaces import Cluster, missing
from tests.lifecycle.many_hosts import HostsRun
from tests.processes import command_line, is_alive

_SETTINGS: dict[str, Any] = {"checkpoint__every": 10, "watchdog__timeout": 10}
_STEP = 25  # of the harm


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of harm; `undo` mends it once the attempt has ended."""

    name: str
    harm: Callable[[HostsRun], None]
    undo: Callable[[Cluster], None] = lambda cluster: None
    before_meeting: bool = False
    restarts: int = 1


def _launching_command(run: HostsRun) -> None:
    next(p for p in run.cluster.head.find("pdsh") if command_line(p)[0] == "pdsh").kill()


FAULTS = (
    Fault("a rank: `kill -9`", lambda run: run.cluster["w2"].kill_rank(1)),
    Fault("DeepSpeed's launcher on a host: `kill -9`", lambda r: r.cluster["w2"].kill_launcher()),
    Fault("pdsh: `kill -9`", _launching_command),
    Fault(
        "a host: power off",
        lambda run: run.cluster["w2"].power_off(),
        lambda cluster: cluster["w2"].power_on(),
    ),
    Fault(
        "a host: cable out",
        lambda run: run.cluster["w2"].link(up=False),
        lambda cluster: cluster["w2"].link(up=True),
    ),
    Fault(
        "a host: power off while the others wait to meet",
        lambda run: run.cluster["w2"].power_off(),
        lambda cluster: cluster["w2"].power_on(),
        before_meeting=True,
    ),
    Fault("a rank: `kill -STOP` (`watchdog.timeout: 10`)", lambda r: r.cluster["w2"].stop_rank(1)),
    Fault("dslm itself: `kill -9`", lambda run: run.supervisor().kill(), restarts=0),
    Fault("dslm itself: SIGTERM", lambda run: run.supervisor().terminate(), restarts=0),
)


def measure(cluster: Cluster, fault: Fault, folder: Path) -> str:
    """One row."""
    run = HostsRun(cluster, folder, "--max-restarts", str(fault.restarts), **_SETTINGS)
    try:
        if fault.before_meeting:
            run.wait(lambda: bool(cluster["w1"].ranks()))
        else:
            run.wait_for_step(_STEP)
        ranks = [process for host in cluster.world for process in host.ranks().values()]
        began, clock = time.monotonic(), time.time()
        fault.harm(run)
        noticed: float | None = None
        ended: float | None = None
        while ended is None or (noticed is None and fault.restarts):
            assert time.monotonic() - began < 120, run.said()
            errors, stops = run.events(Error), run.events(Stop)
            if (errors or stops) and noticed is None:
                seen = errors[0].noticed or errors[0].time if errors else stops[0].time
                noticed = seen - clock
            if ended is None and not any(is_alive(process) for process in ranks):
                ended = time.monotonic() - began
            time.sleep(0.02)
        fault.undo(cluster)
        said = run.events(Error)[0].cause if run.events(Error) else "-"
        lost = "-"
        if fault.restarts:
            run.wait(lambda: any(e.attempt > 1 for e in run.events(Start)))
            lost = str(run.events(Restart)[0].lost_steps)
        elif run.events(CheckpointSaved):
            newest = max(e.step for e in run.events(CheckpointSaved))
            lost = str(max(e.step for e in run.events(Step)) - newest)
    finally:
        run.kill()
    told = f"{noticed:.1f}" if noticed is not None else "-"
    return f"| {fault.name} | {said} | {told} | {ended:.1f} | {lost} |"


def report() -> str:
    """The section."""
    reason = missing()
    if reason:
        return f"## Faults\n\nNot measured: {reason}.\n"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "cluster").mkdir()
        cluster = Cluster(folder / "cluster", 2)
        cluster.start()
        try:
            for number, fault in enumerate(FAULTS):
                place = folder / str(number)
                place.mkdir()
                rows.append(measure(cluster, fault, place))
                print(rows[-1], flush=True)
        finally:
            cluster.stop()
    return (
        "## Faults\n\n"
        "Two hosts under pdsh, one rank each, a checkpoint every ten steps; seconds from the fault "
        "until dslm had noticed, and until the last rank of the attempt was gone on every host; "
        "steps that were made again. All of it shares two cores.\n\n"
        "| fault | reported cause | noticed, s | all processes gone after, s | steps lost |\n"
        "|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    """Measure, and write it down."""
    Section("reliability.md", "python -m benchmarks.faults").write(report())


if __name__ == "__main__":
    main()
