"""From Enter to the first optimizer step: `dslm train` against `deepspeed` on a loop by hand.

On this host, and on two hosts under pdsh, made of namespaces on this machine. The data is prepared
and the operators are built on both sides.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.commands import BIN, checked, operators, training
from benchmarks.training import HANDWRITTEN, MODEL, data_of
from dslm.host.network import free_port
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from tests.cluster.namespaces import Cluster, missing

REPEATS = 3
STEPS = 2
# what somebody sets for two ranks that share two cores
VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    **operators(),
}
_INTERFACE = {"GLOO_SOCKET_IFNAME": "eth0"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where both sides run: how a command is started there, and the options of each."""

    title: str
    start: Callable[[list[str]], None]
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


def _here() -> Place:
    return Place(
        title="this host, 2 ranks",
        start=lambda argv: checked(argv, **VARIABLES),
        ours=("--num-gpus", "2"),
        theirs=("--num_gpus", "2"),
    )


@contextmanager
def _two_hosts(folder: Path) -> Iterator[Place]:
    """Two hosts of one rank each, started from a third one's place."""
    folder.chmod(0o755)
    (folder / "cluster").mkdir()
    cluster = Cluster(folder / "cluster", 2)
    cluster.start()
    hostfile = str(cluster.hostfile(folder))
    # the file that the `deepspeed` command takes the variables of other hosts from
    exported = {**VARIABLES, **_INTERFACE}
    (folder / ".deepspeed_env").write_text("".join(f"{n}={v}\n" for n, v in exported.items()))

    def start(argv: list[str]) -> None:
        done = cluster.head.run(
            ["env", "-C", str(folder), *argv], env={**os.environ, **VARIABLES}, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")

    try:
        yield Place(
            title="2 hosts under pdsh, a rank each",
            start=start,
            ours=("--hostfile", hostfile),
            theirs=("--hostfile", hostfile, "--master_addr", cluster.hosts[0].address),
        )
    finally:
        cluster.stop()


def _dslm(place: Place, run: Path) -> float:
    settings = {
        **MODEL, "parallel.zero_stage": 2, "duration.steps": STEPS, "log.every": 1,
        "checkpoint.every": "null", "evaluation.sample": "null", "data.eval": 0,
    }  # fmt: skip
    argv = [*training(run, settings), *place.ours]
    start = time.time()
    place.start(argv)
    return read_history(RunDirectory(run)).steps[0].time - start


def _handwritten(place: Place, run: Path, data: Path, out: Path) -> float:
    argv = [
        sys.executable, str(BIN / "deepspeed"), *place.theirs, "--master_port", str(free_port()),
        "--no_local_rank", str(HANDWRITTEN), str(run), str(data), str(out),
    ]  # fmt: skip
    start = time.time()
    place.start(argv)
    first: float = json.loads(out.read_text())[0]
    return first - start


def _row(place: Place, folder: Path) -> str:
    run = folder / "first"
    _dslm(place, run)  # builds DeepSpeed's operator and prepares the data; doesn't count
    data = data_of(run)
    ours, theirs = [], []
    for number in range(REPEATS):
        ours.append(_dslm(place, folder / f"run-{number}"))
        theirs.append(_handwritten(place, run, data, folder / "ends.json"))
    mine, other = median(ours), median(theirs)
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    return f"| {place.title} | {mine:.2f} s | {other:.2f} s | {ratio:.2f} |"


def _table(row: str) -> str:
    return (
        "| where | `dslm train` | `deepspeed` on the loop written by hand | ratio |\n"
        f"|---|---|---|---|\n{row}\n"
    )


def report() -> str:
    """The table of this host."""
    with tempfile.TemporaryDirectory() as name:
        row = _row(_here(), Path(name))
    return (
        "## From Enter to the first optimizer step\n\n"
        f"The same model at stage 2, medians of {REPEATS} alternating runs each and of their "
        "ratios; the data is prepared, the operators are built.\n\n" + _table(row)
    )


def on_hosts() -> str:
    """The table of two hosts."""
    title = "### On two hosts\n\n"
    reason = missing()
    if reason:
        return f"{title}Not measured: {reason}.\n"
    with tempfile.TemporaryDirectory() as name, _two_hosts(Path(name)) as place:
        row = _row(place, Path(name))
    return (
        f"{title}Namespaces that share this machine; each side checks hosts in its own way.\n\n"
        + _table(row)
    )
