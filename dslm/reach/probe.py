"""The facts of a host: `python -m dslm.reach.probe`, run once on every host.

A request comes in as a line of JSON on stdin, two lines of JSON go out on stdout: a greeting with
the time of this host's clock, and the facts; judging them is `dslm.reach.checks`' part. The host
that will be the master listens where the ranks are to meet before it greets, until its stdin is
closed, and the others try to reach it meanwhile. Reads versions without importing what it asks
about, starts no training, writes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from dslm.cluster.nvidia import accelerators

PACKAGES = ("dslm", "torch", "deepspeed", "transformers", "accelerate", "datasets")
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
_CONNECT_SECONDS = 5.0
_LIFE_SECONDS = 40  # a probe whose asker is gone ends by itself
_CAP_IPC_LOCK = 14  # its bit: linux/capability.h
_HASHED_BYTES = 64 * 2**20


def facts(request: dict[str, Any]) -> dict[str, Any]:
    """Everything about this host; what can't be found out is None.

    Args:
        request: `run` (folder), `marker` (file below a shared folder or None), `files` (paths that
            must be the same everywhere), `reach` (the master's address and port, or None), `peers`
            (other hosts' names).
    """
    import psutil

    memory = psutil.virtual_memory()
    return {
        "name": socket.gethostname(),
        "name_address": _address_of(socket.gethostname()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": _torch_setting("cuda"),
        "nccl": next((found for name in _NCCL if (found := _version(name))), None),
        "code": _code_digest(),
        "accelerators": accelerators(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory.total,
        "memory_free": memory.available,
        "disk_free": _disk_free(Path(request["run"])),
        "shm_free": shared_memory(),
        "marker": _read(request.get("marker")),
        "files": {name: _digest(Path(name)) for name in request.get("files", ())},
        "reach": _reach(request.get("reach")),
        "open_files": _limit(resource.RLIMIT_NOFILE),
        "locked_memory": locked_memory(),
        "infiniband": _infiniband(),
        "interfaces": _interfaces(),
    }


def main() -> None:
    """Answer one request; see the module."""
    signal.alarm(_LIFE_SECONDS)
    request = json.loads(sys.stdin.readline())
    hello: dict[str, object] = {"time": time.time(), "port_problem": None}
    with contextlib.ExitStack() as stack:
        if request.get("listen") is not None:
            hello["port_problem"] = _listen(stack, request["listen"])
            hello["towards_peers"] = _towards(request.get("peers", ()))
            # ssh(1), ENVIRONMENT: client's address and port, then ours
            hello["reached_at"] = [*os.environ.get("SSH_CONNECTION", "").split(), "", "", ""][2]
        _say(hello)
        _say(facts(request))
        sys.stdin.read()  # the port stays open until the others have tried it


def _say(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _listen(stack: contextlib.ExitStack, port: int) -> str | None:
    """Listen on the master's port; why that isn't possible, or None."""
    try:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(
            ("", port), family=family, backlog=1024, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as failure:
        return failure.strerror or str(failure)
    stack.enter_context(server)
    return None


def _reach(wanted: list[Any] | None) -> dict[str, object] | None:
    """Connect to the master: from which address of ours, or why not."""
    if wanted is None:
        return None
    address, port = wanted
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_SECONDS) as channel:
            own = str(channel.getsockname()[0])
    except OSError as failure:
        return {"error": failure.strerror or str(failure), "address": None}
    return {"error": None, "address": own.removeprefix("::ffff:")}


def _towards(peers: Any) -> str | None:
    """This host's address on the way to the first other host that can be resolved."""
    for name in peers:
        try:
            found = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(found[0], found[1]) as probe:
                probe.connect(found[4])  # sends nothing: it only asks the routing table
                own = str(probe.getsockname()[0])
        except OSError:
            continue
        if not own.startswith("127.") and own != "::1":
            return own
    return None


def _address_of(name: str) -> str | None:
    """Return the address that this host's own name resolves to here."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _interfaces() -> dict[str, str]:
    """Addresses of this host, each with its interface."""
    import psutil

    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch_setting(name: str) -> str | None:
    """A value of torch/version.py, read as text: importing torch takes seconds."""
    try:
        file = Path(str(distribution("torch").locate_file("torch/version.py")))
        text = file.read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        return None
    match = re.search(rf"^{name}(?:\s*:[^=]+)?\s*=\s*'([^']+)'", text, re.MULTILINE)
    return match[1] if match else None


def _code_digest() -> str:
    """Of dslm's own sources here: path and content of every module."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str | None:
    """Of a file's content (its size when it is large); `folder`; None when it isn't there."""
    try:
        if path.is_dir():
            return "folder"
        size = path.stat().st_size
        if size > _HASHED_BYTES:
            return f"{size} bytes"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def _read(marker: str | None) -> str | None:
    if marker is None:
        return None
    folder = Path(marker).parent
    with contextlib.suppress(OSError):
        # NFS caches that a file isn't there; listing its folder asks again
        os.listdir(folder)  # noqa: PTH208 - only for what it does
    try:
        return Path(marker).read_text(encoding="utf-8")
    except OSError:
        return None


def _disk_free(path: Path) -> int | None:
    """Bytes free where a path is, or will be."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def shared_memory() -> int | None:
    """Return the bytes free in this machine's /dev/shm; None: it can't be used."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage("/dev/shm").free  # noqa: S108 - what is asked about
    return None


def locked_memory() -> list[int | None]:
    """Return the soft and hard limit of what a process may lock in memory; None: unlimited.

    Source: mlock(2): who has CAP_IPC_LOCK isn't limited.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        able = next(line.split()[1] for line in status if line.startswith("CapEff:"))
        if int(able, 16) >> _CAP_IPC_LOCK & 1:
            return [None, None]
    return _limit(resource.RLIMIT_MEMLOCK)


def _limit(which: int) -> list[int | None]:
    """Soft and hard limit; None: unlimited."""
    return [None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(which)]


def _infiniband() -> list[str]:
    folder = Path("/sys/class/infiniband")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


if __name__ == "__main__":
    main()
