"""The script that dslm writes is one that Slurm runs, and that comes back after an interruption."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dslm.errors import OptionError
from dslm.launch.sites.site import Batch
from dslm.launch.sites.slurm.batch import batch_script
from tests.cluster.namespaces import MakeHosts, wait_for
from tests.cluster.slurm import Slurm, start_slurm

ODD = 'it\'s $HOME; `id` "x"\n$(reboot)'


def text_of(run: Path, *arguments: str, gpus: bool = False) -> str:
    batch = Batch(name="my run", nodes=2, slots=2, gpus=gpus, run=run, arguments=arguments)
    return batch_script(batch)


def test_the_script_asks_for_hosts_and_runs_dslm_word_for_word(tmp_path: Path) -> None:
    text = text_of(tmp_path / "run", "train", ODD, gpus=True)
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2\n#SBATCH --gpus-per-node=2\n" in text
    assert "#SBATCH --job-name=my_run\n" in text
    # bash itself says which words dslm would get
    said = subprocess.run(
        ["bash", "-c", f"{sys.executable}() {{ printf '%s\\0' \"$@\"; }}\n{text}"],
        capture_output=True,
        text=True,
    ).stdout
    assert said.removesuffix("\0").split("\0") == ["-P", "-m", "dslm", "train", ODD]
    assert "gpus" not in text_of(tmp_path / "run")


@pytest.mark.parametrize("name", ["a\nb", "50%", 'a"b', "a\\b"])
def test_a_folder_that_slurm_would_change_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="Slurm"):
        text_of(tmp_path / name)


# Instead of dslm: counts its starts. The first time it runs until it, or a rank of it, is told that
# the time is over, and ends as a stopped run does.
STAND_IN = """
import signal, subprocess, sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
told = folder / "told"
def stopped(*_):
    print("stopped", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped)
count = len(list(folder.glob("start-*"))) + 1
rank = '''import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1]).touch())
while True: time.sleep(0.1)
'''
if count == 1:
    srun = ["srun", "-N2", "--ntasks-per-node=1", "--overlap", sys.executable, "-c", rank, told]
    ranks = subprocess.Popen(srun)
    time.sleep(1)
(folder / f"start-{count}").touch()
while count == 1:
    if told.exists():
        stopped()
    time.sleep(0.1)
print("done", flush=True)
"""


def submit_stand_in(slurm: Slurm, folder: Path, *options: str) -> str:
    """Submit the script that dslm writes, with another program in it; the job's id."""
    text = text_of(folder / "my run")
    program = shlex.join([sys.executable, "-c", STAND_IN, str(folder)])
    whole = shlex.join([sys.executable, "-P", "-m", "dslm"])
    assert whole in text
    script = folder / "script"
    script.write_text(text.replace(whole, program))
    done = slurm.run(["sbatch", "--parsable", *options, script])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_run_that_ends_right_behind_the_notice_is_queued_again(tmp_path: Path) -> None:
    ends = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(130)); "
    program = shlex.join([sys.executable, "-c", ends + "print('on', flush=True); time.sleep(60)"])
    text = text_of(tmp_path / "run").replace(
        shlex.join([sys.executable, "-P", "-m", "dslm"]), program
    )
    # bash has noticed the end before it looks: its `wait` was ended by the signal
    text = text.replace('wait "$dslm"\n', 'wait "$dslm"\nsleep 1\n', 1)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "JobState=RUNNING"; echo "$@" >> asked\n')
    scontrol.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(text)
    job = subprocess.Popen(
        ["bash", script], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "on\n"
    job.terminate()
    assert job.wait(60) == 130
    assert "requeue 7" in (tmp_path / "asked").read_text()


@pytest.mark.hosts
def test_a_job_comes_back_after_preemption_and_after_its_time_but_not_when_cancelled(
    hosts: MakeHosts, tmp_path: Path
) -> None:
    slurm = start_slurm(hosts(2))
    # preempted by a job of a higher partition
    first = tmp_path / "preempted"
    first.mkdir()
    job = submit_stand_in(slurm, first)
    wait_for(lambda: (first / "start-1").exists())
    other = slurm.run(
        ["sbatch", "--parsable", "-N2", "-p", "high", "-o", "/dev/null", "--wrap", "sleep 1"]
    )
    assert other.returncode == 0, other.stderr
    wait_for(lambda: slurm.state(job) == "COMPLETED")
    assert (first / "start-2").exists()
    assert (first / f"my run-{job}.out").read_text().split("\n")[-2] == "done"
    # a time limit that is nearer than the notice: told at once
    second = tmp_path / "out of time"
    second.mkdir()
    job = submit_stand_in(slurm, second, "--time=2")
    wait_for(lambda: (second / "start-2").exists())
    wait_for(lambda: slurm.state(job) == "COMPLETED")
    # cancelled
    third = tmp_path / "cancelled"
    third.mkdir()
    job = submit_stand_in(slurm, third)
    wait_for(lambda: (third / "start-1").exists())
    slurm.run(["scancel", job])
    wait_for(lambda: slurm.state(job) == "CANCELLED")
    assert not (third / "start-2").exists()
