"""A real Slurm on the hosts of a test cluster: munge everywhere, slurmctld on the head.

    slurm = start_slurm(hosts(2))
    done = slurm.run(["srun", "-N2", "hostname"])

Jobs of the partition `low` are preempted by those of `high`: they get SIGTERM, eight seconds, and
are queued again. Everything ends with the cluster's hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.namespaces import Cluster, Host, wait_for

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CPUS = 2
GRACE_SECONDS = 8


class Slurm:
    """The batch system of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.folder / "slurm"
        self.folder.mkdir()
        self.config = self.folder / "slurm.conf"

    def run(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, where Slurm's own commands find this batch system."""
        given = options.pop("env", dict(os.environ))
        return self.cluster.head.run(argv, env={**given, "SLURM_CONF": str(self.config)}, **options)

    def state(self, job: str) -> str:
        """What became of a job: PENDING, RUNNING, COMPLETED …"""
        shown = self.run(["scontrol", "show", "job", job]).stdout
        return next((w.split("=")[1] for w in shown.split() if w.startswith("JobState=")), "")

    def start(self) -> None:
        """Start every daemon and wait until all hosts are idle."""
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.config.write_text(self._config())
        for host in self.cluster.world:
            self._daemon(host, [
                "munged", "--foreground", "--force", f"--key-file={key}",
                f"--log-file={self.folder}/munged-{host.name}.log",
                f"--seed-file={self.folder}/munged-{host.name}.seed",
                "--pid-file=/run/munge/munged.pid", "--socket=/run/munge/munge.socket.2",
            ])  # fmt: skip
        wait_for(
            lambda: all(
                host.run(["test", "-S", "/run/munge/munge.socket.2"]).returncode == 0
                for host in self.cluster.world
            ),
            30,
        )
        self._daemon(self.cluster.head, ["slurmctld", "-D", "-i", "-f", str(self.config)])
        for host in self.cluster.hosts:
            self._daemon(host, ["slurmd", "-D", "-f", str(self.config)])
        count = len(self.cluster.hosts)

        def all_idle() -> bool:
            states = self.run(["sinfo", "--noheader", "--Node", "--partition=low", "-o", "%T"])
            return states.stdout.split() == ["idle"] * count

        try:
            wait_for(all_idle)
        except AssertionError:
            logs = "\n".join(f.read_text()[-1500:] for f in sorted(self.folder.glob("*.log")))
            raise AssertionError(logs) from None

    def _daemon(self, host: Host, argv: list[str]) -> None:
        log = self.folder / f"{argv[0]}-{host.name}.out.log"
        host.run(["mkdir", "-p", "/run/munge"], check=True)
        host.start(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.config)},
        )

    def _config(self) -> str:
        hosts = self.cluster.hosts
        settings = {
            "ClusterName": "dslm",
            "SlurmctldHost": f"head({self.cluster.head.address})",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # a requeued job waits for so long before it starts again (120 s by default)
            "AuthInfo": "cred_expire=5",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": f"{self.folder}/spool-%n",
            "SlurmctldPidFile": "/run/slurmctld.pid",
            "SlurmdPidFile": "/run/slurmd.pid",
            # cgroups belong to the machine, not to a host made of namespaces
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "SelectType": "select/linear",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": "2",
            "KillWait": "10",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SchedulerParameters": "sched_interval=1,bf_interval=1",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        lines += [f"NodeName={h.name} NodeAddr={h.address} CPUs={_CPUS}" for h in hosts]
        lines += [
            f"PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={GRACE_SECONDS}",
            "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF",
        ]
        return "\n".join(lines) + "\n"


def start_slurm(cluster: Cluster) -> Slurm:
    """Start a batch system on a cluster; skips where Slurm isn't installed."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        pytest.skip(f"a real Slurm needs {', '.join(missing)}")
    slurm = Slurm(cluster)
    slurm.start()
    return slurm
