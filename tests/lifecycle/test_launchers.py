"""Real trainings on real hosts: every launcher, the same losses, no secret anywhere.

DeepSpeed's launcher of a host is real under pdsh on two hosts and under Open MPI; where a test is
about more hosts or other folders, the ranks are forked.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from dslm.run.events import Step
from dslm.run.history import read_history
from tests.cluster.namespaces import Cluster, MakeHosts, wait_for
from tests.cluster.slurm import start_slurm
from tests.conftest import DSLM
from tests.processes import command_line
from tests.support.warm import warm_dslm
from tests.worker.conftest import SMALL, losses, run_dslm

pytestmark = [pytest.mark.slow, pytest.mark.hosts]

STEPS = 4
BATCH: dict[str, Any] = {
    "batch__global_size": 12,
    "batch__micro_size": 1,
}  # for 1, 2, 3 and 4 ranks
SECRETS = {"HF_TOKEN": "hunter2-hub", "WANDB_API_KEY": "hunter2-wandb"}
# in the recipe, the environment and the run directory's path
ODD = "x'\"$HOME;`touch dslm-was-here`"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one rank on this host."""
    short = {"duration.steps": STEPS, "parallel.ranks": 1, "parallel.zero_stage": 2}
    batch = {key.replace("__", "."): value for key, value in BATCH.items()}
    folder = tmp_path_factory.mktemp("alone")
    return losses(run_dslm(folder, "quickstart", {**SMALL, **short, **batch}))


def argv_of(
    run: Path, *options: str | Path, warm: bool = False, **settings: Any
) -> list[str | Path]:
    """`dslm train` of a few steps; settings have `__` where keys have a dot."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    program = warm_dslm(own_process=True) if warm else [DSLM]
    argv: list[str | Path] = [*program, "train", "quickstart", "-o", run, *options]
    for key, value in {**SMALL, "duration.steps": STEPS, "parallel.zero_stage": 2, **given}.items():
        argv += ["-s", f"{key}={value}"]
    return argv


def train_on(
    cluster: Cluster, argv: Sequence[str | Path], **variables: str
) -> tuple[subprocess.Popen[str], set[str]]:
    """Run a training from the cluster's head to its end; every command line that was seen."""
    started = cluster.head.start(
        argv,
        env={**os.environ, "NO_COLOR": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: set[str] = set()
    output: list[str] = []
    while started.poll() is None:
        for process in cluster.processes():
            seen.add("\0".join(command_line(process)))
        try:
            output.append(started.communicate(timeout=0.5)[0])
        except subprocess.TimeoutExpired:
            continue
    assert started.returncode == 0, "".join(output)
    return started, seen


def hosts_of(run: Path) -> list[str]:
    """The host of each rank, as it said itself."""
    files = sorted((run / "logs" / "attempt-1").glob("rank-*.json"))
    return [json.loads(file.read_text())["host"] for file in files]


def everything_in(folder: Path) -> str:
    """All files below a folder as one text."""
    texts = [f.read_bytes().decode(errors="replace") for f in folder.rglob("*") if f.is_file()]
    return "\n".join(texts)


def test_two_hosts_under_pdsh_give_the_losses_of_one_and_no_secret_leaves(
    hosts: MakeHosts, tmp_path: Path, one_rank: list[float]
) -> None:
    cluster = hosts(2)
    cluster["w1"].resolve_itself_to_loopback()
    cluster["w2"].resolve_itself_to_loopback()
    run = tmp_path / f"a run {ODD.replace('/', '')}"
    hostfile = cluster.hostfile(tmp_path, slots=[2, 1])
    argv = argv_of(run, "-H", hostfile, "-s", f"environment.MINE={json.dumps(ODD)}", **BATCH)
    _, seen = train_on(cluster, argv, **SECRETS, NCCL_DEBUG=ODD, UCX_X=ODD, PYTHONX=ODD)
    assert hosts_of(run) == ["w1", "w1", "w2"]
    wait_for(lambda: not cluster.processes())
    assert any("dslm.worker.main" in line for line in seen)
    # the command line of the launching dslm itself is the user's own
    others = [line for line in seen if str(DSLM) not in line]
    assert not [
        line
        for line in others
        if "hunter2" in line or ("was-here" in line and "--hostfile" not in line)
    ]
    assert "hunter2" not in everything_in(run)
    assert not list(Path("/").glob("dslm-was-here*"))
    assert losses(run) == pytest.approx(one_rank, abs=1e-4)


@pytest.mark.parametrize(("launcher", "count", "warm"), [("pdsh", 4, True), ("openmpi", 2, False)])
def test_hosts_under_a_launcher_give_the_losses_of_one(
    launcher: str, count: int, warm: bool, hosts: MakeHosts, tmp_path: Path, one_rank: list[float]
) -> None:
    cluster = hosts(count)
    run = tmp_path / "a run"
    hostfile = cluster.hostfile(tmp_path)
    argv = argv_of(run, "-H", hostfile, "--launcher", launcher, warm=warm, **BATCH)
    train_on(cluster, argv, **SECRETS)
    assert hosts_of(run) == [f"w{number + 1}" for number in range(count)]
    wait_for(lambda: not cluster.processes())
    assert losses(run) == pytest.approx(one_rank, abs=1e-4)
    assert "hunter2" not in everything_in(run)


def test_hosts_without_a_shared_folder_train_on_copies(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(2)
    shared = tmp_path / "shared"
    shared.mkdir()
    run = shared / "run"
    cluster["w2"].hide(shared)
    hostfile = cluster.hostfile(tmp_path)
    train_on(cluster, argv_of(run, "-H", hostfile, warm=True, checkpoint__every="null"))
    assert hosts_of(run) == ["w1", "w2"]
    assert len(losses(run)) == STEPS
    assert (run / "logs" / "attempt-1" / "rank-1.log").stat().st_size > 0
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").iterdir())
    # with checkpoints, the folder must be shared
    refused = cluster.head.run(argv_of(shared / "other", "-H", hostfile, checkpoint__every=2))
    assert refused.returncode == 3
    assert "shared" in refused.stderr or "share" in refused.stderr


def test_a_batch_job_is_preempted_and_carries_on_by_itself(
    hosts: MakeHosts, tmp_path: Path
) -> None:
    cluster = hosts(2)
    slurm = start_slurm(cluster)
    run = tmp_path / "a run"
    steps = 60
    options = ["--slurm", "--num-nodes", "2", "--num-gpus", "1", "--json"]
    argv = argv_of(run, *options, duration__steps=steps)
    dry = slurm.run([*argv, "--dry-run"])
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["script"].startswith("#!/bin/bash\n#SBATCH")
    assert not run.exists()
    done = slurm.run(argv)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["job"]

    def made() -> list[int]:
        return [step.step for step in read_history(RunDirectory(run)).all(Step)]

    def said() -> str:
        outputs = tmp_path.glob("*.out")
        return "".join(file.read_text() for file in outputs)

    try:
        wait_for(lambda: len(made()) >= 5, 180)
        assert hosts_of(run) == ["w1", "w2"]
        slurm.run(
            ["sbatch", "-N2", "-p", "high", "-o", "/dev/null", "--wrap", "sleep 1"], check=True
        )
        wait_for(lambda: slurm.state(job) == "COMPLETED", 300)
    except AssertionError as failure:
        raise AssertionError(f"{slurm.state(job)} {made()[-1:]}\n{said()[-5000:]}") from failure
    # every step once, over both attempts
    assert made() == list(range(1, steps + 1))
    manifest = json.loads((run / "manifest.json").read_text())
    assert [attempt["status"] for attempt in manifest["attempts"]] == ["stopped", "done"]


def test_a_batch_that_the_hosts_cannot_share_is_refused(hosts: MakeHosts, tmp_path: Path) -> None:
    cluster = hosts(2)
    run = tmp_path / "a run"
    hostfile = cluster.hostfile(tmp_path)
    refused = cluster.head.run(argv_of(run, "-H", hostfile, batch__global_size=7))
    assert refused.returncode == 2
    assert "7" in refused.stderr
    assert not run.exists()
