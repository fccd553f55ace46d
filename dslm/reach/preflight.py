"""Preflight: ask every host at once, judge what they say, know how the ranks will meet.

What comes in is hosts and what the run requires; what goes out is results, what the ranks will
run on, the master's address, each host's interface towards it, and which hosts don't see the run
directory.
The edge around `dslm.reach.checks` (judging), `dslm.reach.probe` (what runs there) and
`dslm.reach.remote` (how it gets there).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dslm.cluster import nvidia
from dslm.cluster.devices import Device, cpu_device
from dslm.cluster.hosts import Host
from dslm.cluster.measured import with_measured
from dslm.reach import probe
from dslm.reach.checks import (
    CheckResult,
    Facts,
    HostReport,
    RankNeeds,
    State,
    interface_of,
    judge,
    not_reached,
)
from dslm.reach.remote import SSH, Answer, Remote, Transport

NOTHING = RankNeeds()
DEFAULT_PORT = 29500  # torch's and DeepSpeed's own
_SECONDS = 13.0  # for all of it: a host that takes longer has failed
_NO_PROGRAM = (126, 127)  # of a shell: it can't be run, it isn't there


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirements:
    """Requirements of a run on its hosts."""

    run: Path  # its directory: it, or the folder above that is there, is looked for on every host
    port: int  # where the ranks will meet
    needs_shared: bool = True  # whether the run directory must be seen by every host
    master_address: str | None = None  # None: found out
    kind: str | None = None  # what ranks run on, cuda or cpu; None: whatever the hosts have
    files: tuple[Path, ...] = ()  # that must be the same everywhere
    transport: Transport = SSH


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """The results of a preflight; hosts are named as in the hostfile."""

    results: tuple[CheckResult, ...]
    master_address: str | None
    interfaces: Mapping[str, str] = field(default_factory=dict)
    hosts_without_run_dir: tuple[str, ...] = ()  # hosts that don't see the run directory
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(result.state != State.WRONG for result in self.results)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostAnswers:
    """The answers of all hosts, not judged yet."""

    hosts: Sequence[Host]
    requirements: Requirements
    said: Sequence[_Said]
    here: Facts  # the facts of this machine
    marker: str | None  # what the file for them to find holds
    master_address: str | None
    device: Device | None  # what every slot has: the smallest of them; None: nobody said
    seconds: float


@dataclass(frozen=True, slots=True)
class _Said:
    """The answer of a host, or its failure to answer."""

    hello: Facts
    facts: Facts | None
    answer: Answer
    sent: float
    received: float


def preflight(hosts: Sequence[Host], requirements: Requirements) -> Preflight:
    """Check all hosts at once; the first is the master."""
    return judge_hosts(ask_hosts(hosts, requirements))


def ask_hosts(hosts: Sequence[Host], requirements: Requirements) -> HostAnswers:
    """Ask all hosts at once; the first is the master."""
    began = time.monotonic()
    with _marker(requirements.run) as (marker, content):
        request = {
            "run": str(requirements.run),
            "marker": str(marker) if marker else None,
            "files": [str(path.absolute()) for path in requirements.files],
        }
        here = probe.facts(request)
        said, address = _ask(hosts, requirements, request, began + _SECONDS)
    told = [(h, words.facts) for h, words in zip(hosts, said, strict=True) if words.facts]
    return HostAnswers(
        hosts=hosts,
        requirements=requirements,
        said=said,
        here=here,
        marker=content,
        master_address=address,
        device=device_of_slots(told, requirements.kind),
        seconds=time.monotonic() - began,
    )


def judge_hosts(answers: HostAnswers, needs: RankNeeds = NOTHING) -> Preflight:
    """Judge what hosts said.

    Args:
        answers: from all of them.
        needs: what a rank needs of its host.
    """
    requirements, device = answers.requirements, answers.device
    results: list[CheckResult] = []
    interfaces: dict[str, str] = {}
    hosts_without_run_dir: list[str] = []
    for host, words in zip(answers.hosts, answers.said, strict=True):
        if words.facts is None:
            results += not_reached(host, *_why(host, words.answer, requirements.transport))
            continue
        report = HostReport(
            host=host,
            facts=words.facts,
            here=answers.here,
            run=str(requirements.run),
            marker=answers.marker,
            needs_shared=requirements.needs_shared,
            master=answers.hosts[0].name,
            master_address=answers.master_address,
            port=requirements.port,
            port_problem=answers.said[0].hello.get("port_problem"),
            kind=device.kind if device else requirements.kind,
            needs=needs,
            clock=words.hello["time"],
            sent=words.sent,
            received=words.received,
        )
        results += judge(report)
        interface = interface_of(report)
        if interface is not None:
            interfaces[host.name] = interface
        if answers.marker is not None and words.facts["marker"] != answers.marker:
            hosts_without_run_dir.append(host.name)
    return Preflight(
        results=tuple(results),
        master_address=answers.master_address,
        interfaces=interfaces,
        hosts_without_run_dir=tuple(hosts_without_run_dir),
        seconds=answers.seconds,
    )


def _ask(
    hosts: Sequence[Host],
    requirements: Requirements,
    request: Mapping[str, object],
    deadline: float,
) -> tuple[list[_Said], str | None]:
    """Ask the master first, so that it listens, and then all others at once."""
    argv = [sys.executable, "-P", "-m", "dslm.reach.probe"]
    names = [host.address for host in hosts]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(hosts)) as pool:
        # all connections are made at once; only what is asked has to wait for the master
        remotes = list(
            pool.map(
                lambda host: stack.enter_context(Remote(host.name, argv, requirements.transport)),
                hosts,
            )
        )
        sent = time.time()
        master = remotes[0]
        master.say(json.dumps({**request, "listen": requirements.port, "peers": names[1:]}) + "\n")
        hello = _document(master.line(deadline - time.monotonic()))
        received = time.time()
        address = requirements.master_address or _master_address(hosts[0], hello)
        reach = [address, requirements.port] if address else None

        def ask(remote: Remote) -> _Said:
            began = time.time()
            remote.say(json.dumps({**request, "reach": reach}) + "\n")
            words = _document(remote.line(deadline - time.monotonic()))
            ended = time.time()
            facts = _document(remote.line(deadline - time.monotonic())) if words else {}
            return _Said(
                words, facts or None, remote.end(deadline - time.monotonic()), began, ended
            )

        others = list(pool.map(ask, remotes[1:]))
        facts = _document(master.line(deadline - time.monotonic())) if hello else {}
        first = _Said(hello, facts or None, master.end(deadline - time.monotonic()), sent, received)
    return [first, *others], address


def device_of_slots(told: Sequence[tuple[Host, Facts]], kind: str | None = None) -> Device | None:
    """Return the device of every slot: an accelerator if any host has some, else a CPU share.

    Args:
        told: hosts with their facts.
        kind: what ranks must run on, cuda or cpu; None: whatever the hosts have.
    """
    devices = [
        nvidia.device_of(device, facts["memory"])
        for _, facts in told
        for device in facts["accelerators"]
    ]
    if devices and kind != "cpu":
        return with_measured(min(devices, key=lambda device: device.memory_bytes))
    if kind == "cuda" or not told:
        return None
    return with_measured(cpu_device(min(facts["memory"] // host.slots for host, facts in told)))


def _master_address(host: Host, hello: Facts) -> str | None:
    """Return the address for the rendezvous: the master's towards the others, or ours for it."""
    for address in (hello.get("towards_peers"), hello.get("reached_at")):
        if address and not address.startswith("127.") and address != "::1":
            return str(address)
    if hello and host.address == "localhost":
        return "127.0.0.1"
    return None


def _document(line: str) -> dict[str, Any]:
    """A line of JSON; empty for anything else, such as a greeting of the login shell."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _why(host: Host, answer: Answer, transport: Transport) -> tuple[str, str, str]:
    """Which check failed, how, and the fix, for a host that gave no facts."""
    lines = [line for line in answer.stderr.strip().splitlines() if line.strip()]
    said = lines[-1].strip() if lines else answer.stdout.strip()[:200] or "no answer"
    if answer.exit_code is None:
        return "ssh", f"no answer within {_SECONDS:.0f} s", f"does `ssh {host.name}` answer?"
    if answer.exit_code in _NO_PROGRAM:
        fix = f"install the same environment there: {sys.executable} must be there too"
        return "versions", f"{sys.executable} can't be run there", fix
    if answer.exit_code != transport.unreached:
        fix = f"install the same there: {sys.executable} -m dslm.reach.probe must run"
        return "versions", said, fix
    fixes = {
        "Permission denied": f"allow ssh without a password: `ssh-copy-id {host.name}`",
        "Host key verification failed": f"accept its key once: `ssh {host.name} true`",
        "Could not resolve": "the name is unknown: check hostfile, /etc/hosts and DNS",
        "refused": "sshd isn't running there: `systemctl start ssh`",
        "timed out": "the host is down, or a firewall blocks it",
        "No route": "the host or its network is down",
    }
    fix = next((fix for sign, fix in fixes.items() if sign in answer.stderr), "")
    return "ssh", said, fix or f"`ssh {host.name} true` must work without a question"


@contextlib.contextmanager
def _marker(run: Path) -> Iterator[tuple[Path | None, str | None]]:
    """A file for the hosts to find, below the run directory or the nearest folder above it."""
    folder = next((path for path in (run, *run.parents) if path.is_dir()), None)
    content = secrets.token_hex(8)
    marker = folder / f".dslm-preflight-{content}" if folder else None
    try:
        if marker is not None:
            marker.write_text(content, encoding="utf-8")
    except OSError:
        marker = None  # this machine can't write there: making the run will say so
    try:
        yield marker, content if marker else None
    finally:
        if marker is not None:
            marker.unlink(missing_ok=True)


def hosts_here(hosts: Sequence[Host]) -> bool:
    """Return whether the only host is this machine, by name: no other must be reached then."""
    names = {"localhost", socket.gethostname(), socket.gethostname().partition(".")[0]}
    return len(hosts) == 1 and hosts[0].address in names
