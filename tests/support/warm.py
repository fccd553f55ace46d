"""Ranks forked from a process that has torch, transformers and DeepSpeed loaded already.

Where a test's promise is about numbers, a start should take a second and not ten. Everything about
such a run is real (dslm, its supervisor, the control channel, gloo, DeepSpeed, checkpoints) but
the `deepspeed` command, whose place a fork server takes:

    python warm.py serve SOCKET        the server; it loads the libraries once
    python warm.py dslm SOCKET ARG …   `dslm ARG …` whose ranks the server forks

So does it for the modules that dslm asks for an export, a trace or a conversion, each in a process
of its own. A fork doesn't leave as Python does: what libraries write at exit (wandb) isn't written.

Tests about launching use the real launcher.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslm.launch.spec import LaunchRequest, LaunchSpec

_RANK, _LOCAL_RANK, _WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"
_ANSWERS = "DSLM_ANSWER_PIPE"  # as dslm.environment has it, which the light processes don't load
_START_SECONDS = 120.0
# from any folder, and without this one among those that modules are looked for in
_PROGRAM = (sys.executable, "-P", str(Path(__file__).resolve()))
_LIGHT = (_PROGRAM[0], "-S", *_PROGRAM[1:])  # what needs nothing but Python itself
# what the modules of ranks do, once they have joined
PROGRAMS = {
    "dslm.worker.main": ("dslm.worker.train", "train"),
    "dslm.worker.verify": ("dslm.worker.verify.ranks", "verify"),
}
PRELOADED = (
    "dslm.worker.train", "dslm.worker.export", "dslm.worker.convert", "dslm.worker.trace.profile",
    "torch.utils.cpp_extension",  # with setuptools, of which each rank asks for operators
)  # fmt: skip
# names a function, `MODULE:NAME`, that each rank calls with its number before it works: it makes a
# fault on purpose, in this process only
PLANT = "DSLM_TEST_PLANT"
# one thread a rank: the server has read the variable before it knows how many ranks there will be
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class WarmServer:
    """The server process, started when it is first needed; `command` is a `dslm` that uses it."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "warm.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The words before a verb: what the tests run in place of `dslm`."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        return [*_PROGRAM, "dslm", str(self._socket)]

    def _start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*_PROGRAM, "serve", str(self._socket)],
            env={**os.environ, **SERVER_ENVIRONMENT},
            stdin=subprocess.PIPE,  # it ends with this process, whatever ends that
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._socket.exists():
            assert self._process.poll() is None, "the fork server ended as it started"
            assert time.monotonic() < deadline, "the fork server did not start"
            time.sleep(0.05)


def warm_dslm() -> list[str]:
    """Return the words that stand for `dslm` where this session's server forks the ranks."""
    return _session_server().command()


@functools.cache
def _session_server() -> WarmServer:
    return WarmServer(Path(tempfile.mkdtemp(prefix="dslm-warm-")))


def warm_popen() -> type[subprocess.Popen[Any]]:
    """Return what stands for `subprocess.Popen` where the server forks what dslm asks."""
    return _popen(_session_server().command()[-1])


def work_beside(module: str, arguments: Sequence[str]) -> int:
    """Call `work` of a module in a process whose launches and asks the server forks; its code.

    A process of its own, beside the server: dslm ends whatever an attempt leaves below it.
    """
    path = _session_server().command()[-1]
    return subprocess.run([*_PROGRAM, "work", path, module, *arguments], check=False).returncode


# --- the `dslm` side


def warm_request(spec: LaunchSpec, path: str) -> LaunchRequest:
    """What takes the `deepspeed` command's place: ask the server, wait for its ranks to end."""
    from dslm.launch.spec import LaunchRequest

    ranks = str(spec.cluster.hosts[0].slots)
    argv = (*_LIGHT, "launch", path, ranks, spec.module, *spec.arguments)
    return LaunchRequest(argv=argv, environment={"DS_ACCELERATOR": "cpu"})


def _fork_from(path: str) -> None:
    from dataclasses import replace

    from dslm.launch.sites import SITES

    SITES["local"] = replace(SITES["local"], request=lambda spec: warm_request(spec, path))
    vars(subprocess)["Popen"] = _popen(path)


def _dslm(path: str, arguments: Sequence[str]) -> None:
    _fork_from(path)
    sys.argv = ["dslm", *arguments]
    from dslm.cli.app import main

    main()


def _popen(path: str) -> type[subprocess.Popen[Any]]:
    """What starts a worker module cold, `python -P -m MODULE`, has the server fork it instead."""
    cold = [sys.executable, "-P", "-m"]

    class Popen(subprocess.Popen[Any]):
        def __init__(self, args: Any, **more: Any) -> None:
            if list(args[:3]) == cold and args[3].startswith("dslm.worker."):
                args = [*_LIGHT, "module", path, *args[3:]]
            super().__init__(args, **more)

    return Popen


# --- the launcher and the asked module: light, live as long as what the server forks for them


def _launch(path: str, ranks: str, module: str, arguments: Sequence[str]) -> int:
    return abs(_ask(path, (), ranks=int(ranks), module=module, arguments=list(arguments)))


def _module(path: str, module: str, arguments: Sequence[str]) -> int:
    pipe = os.environ.get(_ANSWERS)
    streams = (0, 1, 2, *([int(pipe)] if pipe else []))
    code = _ask(path, streams, ranks=0, module=module, arguments=list(arguments))
    if code < 0:  # by the same signal
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _ask(path: str, streams: Sequence[int], **asked: Any) -> int:
    """Ask the server for processes with these streams, and wait for their end: its code."""
    asked |= {"environment": dict(os.environ), "folder": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"."], streams) if streams else server.sendall(b".")
        server.sendall(json.dumps(asked).encode() + b"\n")
        answer = server.recv(64)
    return int(answer or b"1")


# --- the server


def _serve(path: str) -> None:
    import gc

    for name in PRELOADED:  # the forks have them from here
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # its children reap themselves
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(socket.AF_UNIX)
    partial = f"{path}.partial"
    listener.bind(partial)
    listener.listen(16)
    Path(partial).rename(path)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attempt(client)
        client.close()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _attempt(client: socket.socket) -> None:
    """Fork what is asked for, wait for it, answer; end it when the one who asked is gone."""
    _, streams, *_ = socket.recv_fds(client, 1, 4)
    asked = json.loads(client.makefile("rb").readline())
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"] | SERVER_ENVIRONMENT)
    pids = [_fork_rank(asked, rank, client) for rank in range(asked["ranks"])]
    if streams:
        pids = [_fork_module(asked, streams, client)]
    code = 0
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            pids.remove(pid)
            code = code or os.waitstatus_to_exitcode(status)
            if code:  # as DeepSpeed's launcher: one that failed ends the others
                _kill(pids)
        elif _gone(client):
            _kill(pids)
            os._exit(1)
        else:
            time.sleep(0.02)
    client.sendall(str(code).encode())
    os._exit(0)


def _fork_module(asked: dict[str, Any], streams: Sequence[int], client: socket.socket) -> int:
    """Fork a process that runs a module as `python -m` does."""
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return pid
    client.close()
    for number, mode in enumerate(("r", "w", "w")):
        os.dup2(streams[number], number)
        os.close(streams[number])
        opened = open(number, mode, buffering=1, closefd=False)  # noqa: SIM115 - for all its life
        setattr(sys, ("stdin", "stdout", "stderr")[number], opened)
    if len(streams) > 3:
        os.environ[_ANSWERS] = str(streams[3])
    sys.argv = [asked["module"], *asked["arguments"]]
    warnings.simplefilter("ignore")  # runpy's: it was imported before
    code = 1
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, it is written down
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _fork_rank(asked: dict[str, Any], rank: int, client: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    client.close()
    os.environ.update({
        _RANK: str(rank), _LOCAL_RANK: str(rank), _WORLD_SIZE: str(asked["ranks"]),
    })  # fmt: skip
    from dslm.worker import ranks

    code = 1  # what Python ends with after an exception
    try:
        program = importlib.import_module(PROGRAMS[asked["module"]][0])
        work = getattr(program, PROGRAMS[asked["module"]][1])
        this = ranks.join(asked["arguments"])
        plant = os.environ.get(PLANT)
        if plant:
            module, _, name = plant.partition(":")
            getattr(importlib.import_module(module), name)(rank)
        ranks.live(this, lambda: work(this))
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is written down
        traceback.print_exc()
    finally:
        os._exit(code)


def _gone(client: socket.socket) -> bool:
    """Whether the launcher has closed its end."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    finally:
        client.setblocking(True)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """The processes of this module, by the first argument."""
    match sys.argv[1:]:
        case ["serve", path]:
            _serve(path)
        case ["launch", path, ranks, module, *arguments]:
            sys.exit(_launch(path, ranks, module, arguments))
        case ["module", path, module, *arguments]:
            sys.exit(_module(path, module, arguments))
        case ["work", path, module, *arguments]:
            _fork_from(path)
            importlib.import_module(module).work(arguments)
        case ["dslm", path, *arguments]:
            _dslm(path, arguments)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
