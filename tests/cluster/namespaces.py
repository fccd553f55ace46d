"""A real cluster on one machine: every host is a set of Linux namespaces with its own sshd.

Use it through the fixture `hosts` (tests/conftest.py):

    def test_something(hosts: MakeHosts) -> None:
        cluster = hosts(2)                            # w1 and w2, both reachable from cluster.head
        hostfile = cluster.hostfile(tmp_path, slots=2)
        done = cluster.head.run(["dslm", "train", "quickstart", "-H", str(hostfile)])
        cluster["w2"].power_off()

A host has its own network (eth0, an address on the cluster's switch), host name, process ids,
/dev/shm, /run, name resolution, sshd and host key. It shares this machine's disk, so every folder
is a shared folder unless the test hides it (`host.hide`). `cluster.head` is the host that one
launches from: on the same switch, without an sshd. No host can reach anything outside.

Nothing of it is visible outside: the switch itself lives in the namespaces of one first process,
and every other process of the cluster is below it. When that one dies the kernel ends all of them
and takes back links, addresses and mounts; it dies with this test run, even with a `kill -9` of it
(prctl(2), PR_SET_PDEATHSIG). So there are no leftovers to clean up, and two test runs on one
machine don't meet. Processes are seen from here, with the process ids of this machine.

Needs root (namespaces, mounts), iproute2, nftables, util-linux and openssh-server; `missing()` says
what is not there, and the fixture skips with that.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import HANGS, command_line, is_alive

_ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NETWORK = "10.77.0"
_NETWORK6 = "fd77:"
_HEAD = f"{_NETWORK}.254"
_MOST_HOSTS = 200
_PROGRAMS = ("ip", "nft", "unshare", "nsenter", "mount", "sshd", "ssh", "ssh-keygen", "pdsh")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
# The init of a host: it reaps orphans (ignored SIGCHLD, signal(7)) and does nothing else.
_INIT = "set -eu\n{setup}\nexec env --ignore-signal=CHLD sleep infinity"
_PRIVATE = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

MakeHosts = Callable[..., "Cluster"]


class Host:
    """One host of a cluster; made by `Cluster`."""

    def __init__(self, cluster: Cluster, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._cluster = cluster
        self._folder = cluster.folder / name
        self._folder.mkdir()
        self._init: psutil.Process | None = None
        self._sshd: subprocess.Popen[bytes] | None = None
        self._delaying: subprocess.Popen[bytes] | None = None
        self._names = self._folder / "hosts"

    @property
    def address6(self) -> str:
        """Its IPv6 address, which has no name."""
        return f"{_NETWORK6}:{self.address.rpartition('.')[2]}"

    # --- its processes -------------------------------------------------------------------------

    def run(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and wait for it: exit code, stdout, stderr."""
        given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 560, **options}
        return subprocess.run(self._enter(argv), **given)

    def start(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on the host.

        What comes back is the nsenter(1) that waits for it, so don't send signals to that:
        `find(…)` or `child(…)` give the process itself.
        """
        return subprocess.Popen(self._enter(argv), **options)

    def child(self, started: subprocess.Popen[Any], seconds: float = HANGS) -> psutil.Process:
        """The command itself that `start` started."""
        outer = psutil.Process(started.pid)
        wait_for(lambda: bool(outer.children()), seconds)
        return outer.children()[0]

    def processes(self) -> list[psutil.Process]:
        """Every process on the host, without its init and its sshd."""
        if self._init is None:
            return []
        namespace = _pid_namespace(self._init.pid)
        sshd = self._sshd_process()
        own = {self._init.pid, sshd.pid if sshd else None}
        found = []
        for process in psutil.process_iter():
            if process.pid in own or _pid_namespace(process.pid) != namespace:
                continue
            try:
                # a zombie is no process any more; the unshare(1) of each host runs on the head
                if is_alive(process) and process.name() != "unshare":
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes on the host whose command line holds all these words."""
        return list(self.command_lines(*words))

    def command_lines(self, *words: str) -> dict[psutil.Process, str]:
        """Those processes with their command lines."""
        found = {}
        for process in self.processes():
            line = " ".join(command_line(process))
            if all(word in line for word in words):
                found[process] = line
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks that run on the host: processes of `dslm.worker` by their RANK."""
        found = {}
        for process, line in self.command_lines("dslm.worker").items():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            name = next((n for n in _RANK_VARIABLES if n in environment), None)
            if name and "deepspeed.launcher.launch" not in line:
                found[int(environment[name])] = process
        return found

    def launcher(self) -> psutil.Process:
        """DeepSpeed's launcher on the host, the parent of its ranks."""
        return self.find("deepspeed.launcher.launch", "-u -m")[0]

    # --- faults --------------------------------------------------------------------------------

    def kill_rank(self, rank: int) -> None:
        """SIGKILL a rank."""
        self.ranks()[rank].kill()

    def stop_rank(self, rank: int) -> None:
        """SIGSTOP a rank: it lives, and makes no progress."""
        self.ranks()[rank].suspend()

    def kill_launcher(self) -> None:
        """SIGKILL DeepSpeed's launcher."""
        self.launcher().kill()

    def power_off(self) -> None:
        """End the host at once: every process, its links; nobody is told."""
        assert self._init is not None
        self._init.kill()
        self._init.wait(HANGS)
        self._init = None

    def power_on(self) -> None:
        """Start the host; after `power_off` with nothing of what it ran before."""
        self._cluster.start_host(self)

    def link(self, *, up: bool) -> None:
        """Plug the host's cable in or out, on the side of the switch."""
        self._cluster.on_switch("ip", "link", "set", self.name, "up" if up else "down")

    def delay(self, milliseconds: int) -> None:
        """Let every frame to and from the host take so long; 0: as ever again."""
        near, far = f"{self.name}-delayed", f"{self.name}-link"
        if self._delaying is not None:
            self._cluster.head.child(self._delaying).kill()
            self._delaying.communicate()
            self._delaying = None
            lines = [f"link delete {near}", f"link set {self.name} master switch"]
            self._cluster.on_switch("ip", "-batch", "-", said="\n".join(lines))
        if milliseconds:
            lines = [
                f"link add {near} type veth peer name {far}",
                f"link set {near} up",
                f"link set {far} master switch up",
                f"link set {self.name} nomaster",
            ]
            self._cluster.on_switch("ip", "-batch", "-", said="\n".join(lines))
            argv = [sys.executable, "-m", "tests.cluster.delayed_link"]
            self._delaying = self._cluster.head.start(
                [*argv, self.name, near, str(milliseconds)], cwd=_ROOT, stdout=subprocess.PIPE
            )
            assert self._delaying.stdout is not None
            assert self._delaying.stdout.readline() == b"ready\n"

    def slow_link(self, megabits: int) -> None:
        """Let no more than so many Mbit/s leave the host: packets wait in a queue before that."""
        argv = ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf"]
        self.run(
            [*argv, "rate", f"{megabits}mbit", "burst", "64kb", "latency", "400ms"], check=True
        )

    def lose(self, percent: int) -> None:
        """Lose so many of a hundred packets that come in from other hosts; 0: none any more."""
        rules = "flush ruleset\n"
        if percent:
            lost = f'iifname "eth0" numgen random mod 100 < {percent} drop'
            hook = "type filter hook input priority 0"
            rules += f"table inet loss {{ chain input {{ {hook}; {lost}; }}; }}\n"
        self.run(["nft", "-f", "-"], input=rules, check=True)

    def refuse_ssh(self) -> None:
        """Stop the host's sshd: connections are refused."""
        process = self._sshd_process()
        if process is not None:
            process.kill()
            process.wait(HANGS)
        self._sshd = None

    def accept_ssh(self) -> None:
        """Start the host's sshd."""
        program = shutil.which("sshd", path=_SBIN)
        assert program
        log = self._folder / "sshd.log"
        # -D: it stays our child's child, so that it is known which one it is
        self._sshd = self.start(
            [program, "-D", "-e", "-f", str(self._folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log.open("wb"),
        )
        wait_for(lambda: "Server listening" in log.read_text())

    def hide(self, folder: Path) -> None:
        """Put an empty folder of its own where the host saw a shared one."""
        self._mount("-t", "tmpfs", "none", str(folder))

    def small_disk(self, folder: Path, size: str) -> None:
        """Put a small disk (`4M`) at a folder of the host."""
        folder.mkdir(parents=True, exist_ok=True)
        self._mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))

    def pretend_version(self, package: str, version: str) -> None:
        """Make an installed package look like another version, on this host only."""
        metadata = _metadata_file(package)
        text = metadata.read_text()
        before = f"\nVersion: {distribution(package).version}\n"
        assert before in text
        changed = self._folder / f"{package}.METADATA"
        changed.write_text(text.replace(before, f"\nVersion: {version}\n", 1))
        self._mount("--bind", str(changed), str(metadata))

    def replace_file(self, file: Path, text: str) -> None:
        """Let the host see other content in an existing file."""
        changed = self._folder / f"replaced-{len(list(self._folder.iterdir()))}"
        changed.write_text(text)
        changed.chmod(file.stat().st_mode)
        self._mount("--bind", str(changed), str(file))

    def resolve_itself_to_loopback(self) -> None:
        """Let the host's own name resolve to 127.0.1.1 on it, as Debian's installer writes it."""
        text = self._names.read_text()
        self._names.write_text(f"127.0.1.1 {self.name}\n{text}")

    # --- how it is made ------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether the host runs."""
        return self._init is not None and is_alive(self._init)

    def boot(self, init: psutil.Process) -> None:
        """Take over the first process of the host."""
        self._init = init

    def setup(self) -> str:
        """The shell lines that furnish the host's namespaces; every word in them is made here."""
        self._names.write_text(self._cluster.names())
        lines = [
            f"hostname {self.name}",
            "mount -t tmpfs none /dev/shm",
            "mount -t tmpfs none /run",
            "mkdir -p /run/sshd",
            f"mount --bind {self._names} /etc/hosts",
            f"mount --bind {self._cluster.folder / 'ssh_config'} /etc/ssh/ssh_config",
            # the caller's own keys and settings play no part
            "if [ -d ~/.ssh ]; then mount -t tmpfs none ~/.ssh; fi",
            "ip link set lo up",
        ]
        return "\n".join(lines)

    def write_sshd_config(self) -> None:
        """Host key and settings of its sshd."""
        key = self._folder / "host_key"
        _make_key(key)
        settings = {
            "Port": "22",
            "HostKey": str(key),
            "AuthorizedKeysFile": str(self._cluster.folder / "user_key.pub"),
            "StrictModes": "no",  # the key file lies in a folder that others may write: /tmp
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "UseDNS": "no",
            "PidFile": "none",
            "MaxStartups": "200",
            "PrintMotd": "no",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        (self._folder / "sshd_config").write_text(text)

    def public_key(self) -> str:
        """The host's public key, as known_hosts has it."""
        return (self._folder / "host_key.pub").read_text().strip()

    def _enter(self, argv: Sequence[str | Path]) -> list[str]:
        assert self._init is not None, f"{self.name} is off"
        return ["nsenter", "--target", str(self._init.pid), *_ALL, "--", *map(str, argv)]

    def _mount(self, *arguments: str) -> None:
        done = self.run(["mount", *arguments])
        assert done.returncode == 0, done.stderr

    def _sshd_process(self) -> psutil.Process | None:
        if self._sshd is None:
            return None
        children = psutil.Process(self._sshd.pid).children() if self._sshd.poll() is None else []
        return children[0] if children else None


class Cluster:
    """So many hosts on one switch, and a head to launch from."""

    def __init__(self, folder: Path, count: int) -> None:
        assert 0 < count <= _MOST_HOSTS
        self.folder = folder
        folder.chmod(0o755)
        self._addresses = {f"w{n}": f"{_NETWORK}.{n}" for n in range(1, count + 1)}
        self._outer: subprocess.Popen[bytes] | None = None
        self.head = Host(self, "head", _HEAD)
        self.hosts = [Host(self, name, address) for name, address in self._addresses.items()]

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    @property
    def world(self) -> list[Host]:
        """The hosts and the head."""
        return [*self.hosts, self.head]

    def hostfile(self, folder: Path, *, slots: int | Sequence[int] = 1) -> Path:
        """Write a hostfile that names all hosts; the file."""
        counts = [slots] * len(self.hosts) if isinstance(slots, int) else slots
        lines = [f"{h.name} slots={n}\n" for h, n in zip(self.hosts, counts, strict=True)]
        file = folder / "hostfile"
        file.write_text("".join(lines))
        return file

    def processes(self) -> list[psutil.Process]:
        """Every process of the cluster, without the inits and sshds."""
        return [process for host in self.world for process in host.processes()]

    def names(self) -> str:
        """/etc/hosts of every host."""
        lines = ["127.0.0.1 localhost", f"{_HEAD} head"]
        return "\n".join([*lines, *(f"{a} {n}" for n, a in self._addresses.items())]) + "\n"

    def start(self) -> None:
        """Make keys, switch and hosts."""
        _make_key(self.folder / "user_key")
        for host in self.hosts:
            host.write_sshd_config()
        known = "".join(f"{h.name},{h.address},{h.address6} {h.public_key()}\n" for h in self.hosts)
        (self.folder / "known_hosts").write_text(known)
        (self.folder / "ssh_config").write_text(
            "Host *\n"
            f"  IdentityFile {self.folder / 'user_key'}\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}\n"
            "  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        switch = (
            "ip link add switch type bridge forward_delay 0\n"
            f"ip address add {_HEAD}/24 dev switch\n"
            f"ip address add {self.head.address6}/64 dev switch nodad\n"
            "ip link set switch up"
        )
        self._outer = self._boot(self.head, [], switch)
        for host in self.hosts:
            self.start_host(host)

    def start_host(self, host: Host) -> None:
        """Start one host that is off."""
        assert not host.is_on
        # below the head's init, so that it ends with it
        self._boot(host, self.head._enter([]), "")
        assert host._init is not None
        lines = (
            # the same hardware address each time, as a machine that is switched off and on has it
            f"link add {host.name} type veth peer name eth0 "
            f"address 02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x} "
            f"netns {host._init.pid}",
            f"link set {host.name} master switch up",
        )
        self.on_switch("ip", "-batch", "-", said="\n".join(lines))
        inside = (
            f"address add {host.address}/24 dev eth0",
            f"address add {host.address6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {_HEAD}",
        )
        host.run(["ip", "-batch", "-"], input="\n".join(inside), check=True)
        host.accept_ssh()

    def stop(self) -> None:
        """End everything."""
        if self.head._init is not None and self.head.is_on:
            self.head._init.kill()
        if self._outer is not None:
            self._outer.wait(HANGS)

    def on_switch(self, *argv: str, said: str | None = None) -> None:
        """Run a command in the switch's network, with the process ids of this machine."""
        assert self.head._init is not None
        where = ["nsenter", "--target", str(self.head._init.pid), "--net", "--"]
        done = subprocess.run([*where, *argv], input=said, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def _boot(self, host: Host, below: list[str], more: str) -> subprocess.Popen[bytes]:
        script = _INIT.format(setup=host.setup() + "\n" + more)
        log = (host._folder / "boot.log").open("wb")
        process = subprocess.Popen(
            [*below, "unshare", *_PRIVATE, "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SBIN}"},
        )

        def booted() -> bool:
            assert process.poll() is None, (host._folder / "boot.log").read_text()
            return _first_process(process.pid) is not None

        wait_for(booted)
        init = _first_process(process.pid)
        assert init is not None
        host.boot(init)
        return process


_ALL = ("--mount", "--uts", "--ipc", "--net", "--pid")
_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def make_hosts(folder: Callable[[], Path]) -> Iterator[MakeHosts]:
    """The body of the fixture `hosts`: makes clusters below new folders, and ends them."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    made: list[Cluster] = []

    def make(count: int) -> Cluster:
        cluster = Cluster(folder(), count)
        made.append(cluster)
        cluster.start()
        return cluster

    try:
        yield make
    finally:
        for cluster in made:
            cluster.stop()


def missing() -> str:
    """What this machine lacks for such clusters, in words; empty when nothing."""
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    programs = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    if programs:
        return f"hosts as namespaces need {', '.join(programs)}"
    done = subprocess.run(["unshare", *_PRIVATE, "true"], capture_output=True, text=True)
    if done.returncode != 0:
        return f"no right to make namespaces: {done.stderr.strip()}"
    return ""


def wait_for(condition: Callable[[], bool], seconds: float = HANGS) -> None:
    """Wait until something is so; fails when it isn't within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.02)


def _first_process(outer: int) -> psutil.Process | None:
    """The init of a host, once it has finished its setup: the `sleep` below nsenter, unshare."""
    try:
        for process in psutil.Process(outer).children(recursive=True):
            if process.name() == "sleep":
                return process
    except psutil.Error:
        return None
    return None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _make_key(file: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", file.name, "-f", str(file)],
        check=True,
        capture_output=True,
    )


def _metadata_file(package: str) -> Path:
    found = distribution(package).locate_file("")
    name = f"{package}-{distribution(package).version}.dist-info"
    file = Path(str(found)) / name / "METADATA"
    assert file.is_file(), file
    return file
