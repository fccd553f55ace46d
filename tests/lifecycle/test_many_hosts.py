"""On real hosts: what fails is noticed, explained, ended everywhere, and gone on from.

Where DeepSpeed's launcher of a host, and how long ranks import, play no part the ranks are forked.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Error, Restart, Stall, Step
from dslm.run.samples import samples_of_steps
from dslm.run.summary import summarize
from tests.cluster.namespaces import Cluster, make_hosts
from tests.conftest import DSLM
from tests.lifecycle.many_hosts import TINY, HostsRun, losses_of
from tests.processes import HANGS
from tests.support.warm import PLANT
from tests.worker.conftest import run_dslm
from tests.worker.faults import WHEN

pytestmark = [pytest.mark.slow, pytest.mark.hosts]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for make in make_hosts(lambda: tmp_path_factory.mktemp("hosts")):
        yield make(2)


@pytest.fixture
def started(cluster: Cluster, tmp_path: Path) -> Iterator[Any]:
    """Start a training on the hosts; whatever becomes of it, nothing of it is left."""
    runs: list[HostsRun] = []

    def start(*options: str, warm: bool = True, **settings: Any) -> HostsRun:
        runs.append(HostsRun(cluster, tmp_path, *options, warm=warm, **settings))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
    for host in cluster.world:
        if not host.is_on:
            host.power_on()


def gone(run: HostsRun) -> bool:
    """Whether no process of a run is left on any host, sooner or later."""
    deadline = time.monotonic() + HANGS
    while run.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not run.alive()


def test_a_run_carries_on_through_a_killed_rank_and_a_lost_host(
    cluster: Cluster, started: Any, tmp_path: Path
) -> None:
    settings = {
        "duration__steps": 120,
        "checkpoint__every": 10,
        "data__max_documents": 100,
        "log__samples": "true",
        # at the quickstart's rate the order of summation alone makes 6e-4 in so many steps
        "optimizer__lr": 5e-4,
    }
    run = started("--max-restarts", "3", **settings)
    run.wait_for_step(25)
    cluster["w2"].kill_rank(1)
    run.wait_for_step(45, attempt=2)
    cluster["w2"].power_off()
    run.wait_for_step(70, attempt=3)  # with one rank: the checkpoint was converted
    cluster["w2"].power_on()
    cluster["w1"].kill_rank(0)
    assert run.end() == 0, run.said()
    assert gone(run)

    assert "not verified on these hosts: `--verify`" in run.said()
    restarts = run.events(Restart)
    assert [event.world_size for event in restarts] == [2, 1, 2]
    assert all(0 <= event.lost_steps <= 60 for event in restarts)
    errors = run.events(Error)
    assert [event.host for event in errors] == ["w2", "w2", "w1"], run.ranks_said()
    assert (errors[0].rank, errors[2].rank) == (1, 0)
    assert "the kernel's log" in " ".join(errors[0].facts)  # of w2, which was asked
    assert "from here" not in " ".join(errors[0].facts)

    quiet = {key.replace("__", "."): value for key, value in settings.items()}
    undisturbed = run_dslm(tmp_path / "quiet", "quickstart", {**TINY, **quiet, "parallel.ranks": 2})
    expected = losses_of(undisturbed)
    assert run.losses().keys() == expected.keys()
    for step, loss in run.losses().items():
        assert loss == pytest.approx(expected[step], abs=1e-4)

    samples = samples_of_steps(RunDirectory(run.run))
    assert samples == samples_of_steps(RunDirectory(undisturbed))
    places = [place for step in samples.values() for place in step]
    assert len(places) == len(set(places)) == 120 * 4

    summary = summarize(RunDirectory(run.run))
    assert summary.status == "done"
    assert summary.attempts == 4
    assert summary.goodput is not None
    assert 0 < summary.goodput < 1


def test_ranks_that_shared_sequences_go_on_alone_when_a_host_is_lost(
    cluster: Cluster, started: Any, tmp_path: Path
) -> None:
    settings = {
        "duration__steps": 40, "checkpoint__every": 10, "parallel__zero_stage": 1,
        "precision": "fp32", "optimizer__lr": 5e-4,
    }  # fmt: skip
    run = started("--max-restarts", "2", parallel__sequence=2, **settings)
    run.wait_for_step(15)
    cluster["w2"].power_off()
    assert run.end() == 0, run.said()
    assert [event.world_size for event in run.events(Restart)] == [1]
    quiet = {key.replace("__", "."): value for key, value in settings.items()}
    alone = run_dslm(tmp_path / "alone", "quickstart", {**TINY, **quiet, "parallel.ranks": 1})
    expected = losses_of(alone)
    assert run.losses().keys() == expected.keys()
    for step, loss in run.losses().items():
        assert loss == pytest.approx(expected[step], abs=1e-4)


def test_a_layout_is_verified_on_two_hosts_before_the_first_step(
    cluster: Cluster, started: Any, tmp_path: Path
) -> None:
    run = started("--verify", duration__steps=2, log__every=1)
    assert run.end() == 0, run.said()
    assert "verified quickstart: " in run.said()
    assert "on 2 ranks" in run.said()
    assert "not verified" not in run.said()
    shown = cluster.head.run([DSLM, "runs", "show", run.run], env={**os.environ, "COLUMNS": "200"})
    assert "verified" in shown.stdout, shown.stderr
    assert "parameters and" in shown.stdout
    hosts = (tmp_path / "run-verify" / "manifest.json").read_text()
    assert '"w1"' in hosts
    assert '"w2"' in hosts


def test_a_host_without_its_cable_is_noticed_and_ends_its_ranks_itself(
    cluster: Cluster, started: Any
) -> None:
    run = started("--max-restarts", "0")
    run.wait_for_step(3)
    cluster["w2"].link(up=False)
    try:
        assert run.end() == 1, run.said()
        assert "w2" in run.said()
        assert gone(run)
    finally:
        cluster["w2"].link(up=True)


def test_a_host_without_its_cable_is_named_when_a_peer_notices_first(
    cluster: Cluster, started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when = tmp_path / "waits"
    monkeypatch.setenv(PLANT, "tests.worker.faults:notices_a_loss")
    monkeypatch.setenv(WHEN, str(when))
    run = started("--max-restarts", "0")
    run.wait(when.exists)
    cluster["w2"].link(up=False)
    try:
        when.unlink()
        assert run.end() == 1, run.said()
    finally:
        cluster["w2"].link(up=True)
    (error,) = run.events(Error)
    assert (error.host, error.rank) == ("w2", 1), run.said()


def test_nothing_is_left_on_any_host_after_a_killed_supervisor(started: Any) -> None:
    run = started(warm=False)
    run.wait_for_step(2)
    run.supervisor().kill()
    assert gone(run), run.alive()


def test_a_stopped_rank_is_named_and_the_stacks_of_the_others_are_kept(
    cluster: Cluster, started: Any
) -> None:
    run = started("--max-restarts", "0", watchdog__timeout=12)
    run.wait_for_step(2)
    cluster["w2"].stop_rank(1)
    assert run.end() == 1
    (stall,) = run.events(Stall)
    assert (stall.rank, stall.host) == (1, "w2")
    assert "stopped" in stall.message
    assert "distributed_c10d.py" in (run.run / "logs/attempt-1/stacks-rank-0.txt").read_text()
    assert gone(run)


def test_ctrl_c_saves_and_ends_every_host_and_the_jobs_of_others_go_on(
    cluster: Cluster, started: Any
) -> None:
    # what DeepSpeed's own clean-up would find: `pkill -f` on the launcher's command line
    other = cluster["w1"].start(
        ["python3", "-c", "import time; time.sleep(600)", "-u", "-m", "deepspeed.launcher.launch"],
        stdout=subprocess.DEVNULL,
    )
    run = started(warm=False)
    run.wait_for_step(3)
    run.supervisor().terminate()
    assert run.end() == 130, run.said()
    assert gone(run)
    assert list((run.run / "checkpoints").glob("step-*/manifest.json"))
    assert other.poll() is None
    cluster["w1"].child(other).kill()


def test_ranks_that_wait_for_a_host_that_failed_do_not_wait_long(
    cluster: Cluster, started: Any
) -> None:
    run = started("--max-restarts", "0", warm=False)
    run.wait(lambda: len(cluster["w1"].ranks()) == 1)
    cluster["w2"].power_off()
    assert run.end() == 1, run.said()
    assert "w2" in run.said()
    assert gone(run)


def test_a_slow_link_with_delay_that_loses_packets_is_no_failure(
    cluster: Cluster, started: Any
) -> None:
    cluster["w1"].lose(3)
    cluster["w2"].lose(3)
    cluster["w2"].slow_link(20)
    cluster["w1"].delay(5)
    try:
        run = started("--max-restarts", "0", duration__steps=30)
        assert run.end() == 0, run.said()
    finally:
        cluster["w1"].delay(0)
        for host in cluster.hosts:
            host.lose(0)
        cluster["w2"].run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True)
    assert [step.step for step in run.events(Step)] == list(range(1, 31))
