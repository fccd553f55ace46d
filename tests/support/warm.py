"""Ranks forked from a process that has torch, transformers and DeepSpeed loaded already.

Where a test's promise is about numbers, a start should take a second and not ten. Everything about
such a run is real (dslm, its supervisor, the control channel, gloo, DeepSpeed, checkpoints, pdsh,
ssh) but DeepSpeed's launcher of a host, whose place a fork server takes:

    python warm.py serve SOCKET PID      a test session's server; it loads the libraries once
    python warm.py dslm SOCKET ARG …     `dslm ARG …` whose ranks the server forks

Who asks for a fork is `tests/support/forked.py`; `dslm` itself can be forked, too.

A rank has the command line and the variables that a real one has, and it is on the host that it was
asked for on: the fork goes into the namespaces of that one (tests.cluster.namespaces).

So does it for the modules that dslm asks for an export, a trace or a conversion, and for the tests'
own that need torch, each in a process of its own. A fork doesn't leave as Python does: what
libraries write at exit (wandb) isn't written. Nor do libraries read the variables that they read
when they are imported (HF_HUB_OFFLINE): tests of those start cold.

Tests about launching use the real launcher.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dslm.environment import ANSWER_PIPE

if TYPE_CHECKING:
    from dslm.launch.spec import LaunchSpec

_RANK, _LOCAL_RANK, _WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"
_START_SECONDS = 120.0
_LOOKS_SECONDS = 1.0  # how often DeepSpeed's launcher looks for ranks that have ended
# from any folder, and without this one among those that modules are looked for in
_PROGRAM = (sys.executable, "-P", str(Path(__file__).resolve()))
# what asks the server; it needs nothing but Python itself
_ASK = (sys.executable, "-S", "-P", str(Path(__file__).resolve().with_name("forked.py")))
# what the modules of ranks do, once they have joined; others are executed as they are
PROGRAMS = {
    "dslm.worker.main": ("dslm.worker.train", "train"),
    "dslm.worker.verify": ("dslm.worker.verify.ranks", "verify"),
}
PRELOADED = (
    "dslm.worker.train", "dslm.worker.export", "dslm.worker.convert", "dslm.worker.trace.profile",
    # what `dslm train` is, and what it shows
    "dslm.cli.app", "dslm.lifecycle.training", "dslm.diagnose.explain",
    "dslm.cli.screens.ending", "dslm.cli.screens.progress", "rich.jupyter", "rich._emoji_codes",
    "torch.utils.cpp_extension",  # with setuptools, of which each rank asks for operators
    # what each rank, or most of them, would import after it was forked
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer",
    "transformers.models.llama.modeling_llama", "distutils.ccompiler",
)  # fmt: skip
# what is the same for all of them, and kept by the function that finds it out
KNOWN = (
    "dslm.cluster.wrong_versions:wrong_versions", "dslm.diagnose.catalogue:catalogue",
    "dslm.decide.checks.facts:_table", "dslm.decide.matrix:recorded", "dslm.zero.keys:table",
    "dslm.profile.store:preset_parameters", "dslm.recipe.data_paths:stdlib_files",
    "dslm.recipe.findings:known_keys",
)  # fmt: skip
# of DeepSpeed, that most trainings on a CPU use, each with what builds it
OPERATORS = {"deepspeed_shm_comm": "ShareMemCommBuilder", "cpu_adam": "CPUAdamBuilder"}
# names a function, `MODULE:NAME`, that each rank calls with its number before it works: it makes a
# fault on purpose, in this process only
PLANT = "DSLM_TEST_PLANT"
_OURS = "DSLM_TEST_"  # such variables go along to other hosts
_FORKED = ("dslm.worker.", "benchmarks.", "tests.")  # modules that `python -P -m` would load cold
# one thread a rank: the server has read the variable before it knows how many ranks there will be
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
_BEGAN_WITH = dict(os.environ)  # without what a test sets for itself
_NAMESPACES = ("net", "uts", "ipc", "pid", "mnt")  # of a host; the last one hides /proc of here
_ROOM, _MORE_ROOM = "-" * 2000, "-" * 50_000  # for other words and variables, where /proc has them


@functools.cache
def _server() -> str:
    """Return where the session's server listens; the worker that needs it first starts it."""
    import psutil

    from benchmarks.commands import operators

    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    began = psutil.Process(session).create_time()
    folder = Path(tempfile.gettempdir(), f"dslm-warm-{session}-{began:.0f}")
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "warm.sock"
    with (folder / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not path.exists():
            process = subprocess.Popen(
                [*_PROGRAM, "serve", str(path), str(session), _ROOM],
                env={**_BEGAN_WITH, **operators(), **SERVER_ENVIRONMENT, "ROOM": _MORE_ROOM},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            _STARTED.append(process)
            deadline = time.monotonic() + _START_SECONDS
            while not path.exists():
                assert process.poll() is None, "the fork server ended as it started"
                assert time.monotonic() < deadline, "the fork server did not start"
                time.sleep(0.05)
    return str(path)


_STARTED: list[subprocess.Popen[bytes]] = []  # it lives as long as the session


def warm_dslm(*, own_process: bool = False) -> list[str]:
    """Return the words that stand for `dslm` where this session's server forks the ranks.

    Args:
        own_process: what is started is `dslm` itself, to send signals to; else it is forked, too.
    """
    return [*_PROGRAM, "dslm", _server()] if own_process else [*_ASK, _server(), "dslm"]


def warm_popen() -> type[subprocess.Popen[Any]]:
    """Return what stands for `subprocess.Popen` where the server forks what dslm asks.

    The server is started by the first that asks.
    """
    return _popen(_server)


def work_beside(module: str, arguments: Sequence[str]) -> int:
    """Call `work` of a module in a process whose launches and asks the server forks; its code.

    A process of its own, beside the server: dslm ends whatever an attempt leaves below it.
    """
    return subprocess.run(
        [*_PROGRAM, "work", _server(), module, *arguments], check=False
    ).returncode


# --- the `dslm` side


def run_dslm(path: str, arguments: Sequence[str]) -> None:
    """Run dslm in this process; the server at a path forks its ranks."""
    _fork_from(path)
    sys.argv = ["dslm", *arguments]
    from dslm.cli.app import main

    main()


def _fork_from(path: str) -> None:
    from dslm.launch.sites import deepspeed, local, pdsh

    usual = deepspeed.node_launcher

    def node_launcher(spec: LaunchSpec, *more: str) -> tuple[str, ...]:
        """What takes the place of DeepSpeed's launcher of a host, with the same words."""
        planted = [f"--{name}={value}" for name, value in os.environ.items() if _OURS in name]
        return (*_ASK, path, "launch", *planted, *usual(spec, *more)[4:])

    for site in (local, pdsh):
        vars(site)["node_launcher"] = node_launcher
    vars(subprocess)["Popen"] = _popen(lambda: path)


def _popen(path: Callable[[], str]) -> type[subprocess.Popen[Any]]:
    """What starts a module that needs torch, `python -P -m MODULE`, lets the server fork it."""
    cold = [sys.executable, "-P", "-m"]

    class Popen(subprocess.Popen[Any]):
        def __init__(self, args: Any, **more: Any) -> None:
            if list(args[:3]) == cold and args[3].startswith(_FORKED):
                args = [*_ASK, path(), "module", *args[3:]]
            super().__init__(args, **more)

    return Popen


# --- the server


def _serve(path: str, session: int) -> None:
    _prepare()
    gc.freeze()
    threading.Thread(target=_end_with, args=(session, Path(path)), daemon=True).start()
    listener = socket.socket(socket.AF_UNIX)
    partial = f"{path}.partial"
    listener.bind(partial)
    listener.listen(16)
    Path(partial).rename(path)
    unloaded = dict(OPERATORS)
    while True:
        client, _ = listener.accept()
        _load_built(unloaded)
        _reap()  # what DeepSpeed asks as it loads waits for children itself: they can't be ignored
        if os.fork() == 0:
            listener.close()
            _attempt(client, path)
        client.close()


def _prepare() -> None:
    """Load and find out what each fork would: libraries, catalogues, what the compiler can do."""
    for name in PRELOADED:
        importlib.import_module(name)
    for place in KNOWN:
        module, _, name = place.partition(":")
        getattr(importlib.import_module(module), name)()
    mappings = importlib.import_module("transformers.conversion_mapping")
    mappings.get_checkpoint_conversion_mapping("llama")  # compiles 900 patterns, and keeps them
    codec = importlib.import_module("dslm.codec")
    for kind in _below(codec.Strict):
        codec._adapter(kind)
    commands = importlib.import_module("typer.main")
    kept = functools.cache(commands.get_command)
    vars(commands)["get_command"] = kept
    kept(importlib.import_module("dslm.cli.app").app)
    # compiles and links a program; each rank asks for it
    _ = importlib.import_module("deepspeed.ops").__compatible_ops__


def _reap() -> None:
    """Let go of forks that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _load_built(unloaded: dict[str, str]) -> None:
    """Load operators that have been built by now, so that no fork asks the compiler for them."""
    from deepspeed.accelerator import get_accelerator

    from dslm.worker.extension_builds import build_folder, is_built

    folder = build_folder(os.environ)
    for name, builder in tuple(unloaded.items()):
        # torch waits for a build that is marked, for ever if who made the mark was killed
        if is_built(name, folder) and not any(folder.rglob(f"{name}/lock")):
            get_accelerator().create_op_builder(builder).load(verbose=False)
            del unloaded[name]
            gc.freeze()


def _below(kind: type[Any]) -> list[type[Any]]:
    """All classes that are made of one."""
    found: list[type[Any]] = []
    for direct in kind.__subclasses__():
        found += [direct, *_below(direct)]
    return found


def _end_with(session: int, path: Path) -> None:
    """End with the test session, whatever ends that."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(session)], [], [])
    shutil.rmtree(path.parent, ignore_errors=True)
    os._exit(0)


def _attempt(client: socket.socket, path: str) -> None:
    """Fork what is asked for, wait for it, answer; end it when the one who asked is gone."""
    _, streams, *_ = socket.recv_fds(client, 1, 4)
    asked = json.loads(client.makefile("rb").readline())
    os.setsid()
    _follow(client)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"] | SERVER_ENVIRONMENT)
    _call_itself([*_PROGRAM, "ranks", *asked["words"]])
    if asked["kind"] == "launch":
        asked |= _ranks_of(asked["words"])
        os.environ.update(asked["planted"])
        pids = [_fork_rank(asked, rank, client) for rank in range(asked["ranks"])]
    else:
        pids = [_fork_module(asked, path, streams, client)]
    client.sendall(str(_code_of(pids, client)).encode())
    os._exit(0)


def _ranks_of(words: Sequence[str]) -> dict[str, Any]:
    """Which ranks a host has, by the words of DeepSpeed's launcher."""
    given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    slots = json.loads(base64.urlsafe_b64decode(given["--world_info"]))
    counts = [len(each) for each in slots.values()]
    node = int(given.get("--node_rank", 0))
    module, *arguments = words[words.index("--module") + 1 :]
    return {
        "module": module, "arguments": arguments, "world_size": sum(counts),
        "first": sum(counts[:node]), "ranks": counts[node],
        "planted": {name[2:]: value for name, value in given.items() if _OURS in name},
    }  # fmt: skip


def _code_of(pids: Sequence[int], client: socket.socket) -> int:
    """Wait until processes have ended: the first code that isn't 0. End them if nobody waits."""
    alive, code, closed = {os.pidfd_open(pid): pid for pid in pids}, 0, client.fileno()
    while alive:
        ready, *_ = select.select([closed, *alive], [], [])
        for process in alive.keys() & set(ready):
            _, status = os.waitpid(alive.pop(process), 0)
            os.close(process)
            code = code or os.waitstatus_to_exitcode(status)
        if closed in ready and alive:  # it says nothing more
            _kill(alive.values())
            os._exit(1)
        if code and alive:  # as DeepSpeed's launcher: one that failed ends the others
            time.sleep(_LOOKS_SECONDS)
            _kill(alive.values())
    return code


def _follow(client: socket.socket) -> None:
    """Go into the namespaces of the one who asks, if it is on another host."""
    asking = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    theirs, ours = (
        [Path(f"/proc/{pid}/ns/{kind}") for kind in _NAMESPACES] for pid in (asking, os.getpid())
    )
    if [place.readlink() for place in theirs] == [place.readlink() for place in ours]:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for opened in [os.open(place, os.O_RDONLY) for place in theirs]:
        if libc.setns(opened, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(opened)
    if os.fork():  # the children of a process are in its new namespace of processes, not itself
        os._exit(0)


def _call_itself(words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Let /proc show this command line, and these variables, as if they had been executed.

    They are written over those that the server was started with, which has room for them.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end, variables_start, variables_end = map(int, fields[45:49])  # proc(5), arg_start …
    texts = [f"{name}={value}" for name, value in (variables or {}).items()]
    for place, size, parts in (
        (start, end - start, words),
        (variables_start, variables_end - variables_start, texts),
    ):
        whole = "\0".join(parts).encode()[: size - 1].ljust(size, b"\0")
        if parts:
            ctypes.memmove(place, whole, size)


def _fork_module(
    asked: dict[str, Any], path: str, streams: Sequence[int], client: socket.socket
) -> int:
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
        os.environ[ANSWER_PIPE] = str(streams[3])
    module, *arguments = ["dslm"] * (asked["kind"] == "dslm") + asked["words"]
    _call_itself([sys.executable, "-P", "-m", module, *arguments])
    code = 1
    try:
        if asked["kind"] == "dslm":
            run_dslm(path, arguments)
        else:
            sys.argv = [module, *arguments]
            warnings.simplefilter("ignore")  # runpy's: it was imported before
            runpy.run_module(module, run_name="__main__", alter_sys=True)
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
        _RANK: str(asked["first"] + rank), _LOCAL_RANK: str(rank),
        _WORLD_SIZE: str(asked["world_size"]),
    })  # fmt: skip
    argv = [sys.executable, "-u", "-m", asked["module"], *asked["arguments"]]
    _call_itself(argv, os.environ)
    code = 1  # what Python ends with after an exception
    try:
        plant = os.environ.get(PLANT)
        if plant:
            module, _, name = plant.partition(":")
            getattr(importlib.import_module(module), name)(asked["first"] + rank)
        _work(asked["module"], asked["arguments"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - whatever it is, it is written down
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(module: str, arguments: Sequence[str]) -> None:
    """Do what a rank's module does."""
    from dslm.worker import ranks

    if module not in PROGRAMS:
        sys.argv = [module, *arguments]
        warnings.simplefilter("ignore")
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    place, name = PROGRAMS[module]
    work = getattr(importlib.import_module(place), name)
    this = ranks.join(arguments)
    ranks.live(this, lambda: work(this))


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """The processes of this module, by the first argument."""
    match sys.argv[1:]:
        case ["serve", path, session, _]:
            _serve(path, int(session))
        case ["work", path, module, *arguments]:
            _fork_from(path)
            importlib.import_module(module).work(arguments)
        case ["dslm", path, *arguments]:
            run_dslm(path, arguments)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
