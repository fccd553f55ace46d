"""Copies of a run's small files on hosts that don't see its directory, and their logs back from it.

`send` before an attempt, `fetch` after it; on the other side `python -m dslm.reach.copies` does
what it is told on stdin. It goes over the same transport as everything else and not by pdcp, scp
or sbcast: pdcp has to be installed on every host, an old scp lets a shell read the path, and sbcast
takes one file. Here no path is on a command line, and each file is whole or absent. What stays on
such a host: its copy of the run directory.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dslm.errors import PreflightError, Where
from dslm.reach.remote import SSH, Answer, Transport, run_everywhere

_SECONDS = 30.0
_FETCHED_BYTES = 2 * 2**20  # of each log: its end says how it ended
_ARGV = [sys.executable, "-P", "-m", "dslm.reach.copies"]


def send(hosts: Sequence[str], run: Path, names: Iterable[str], transport: Transport = SSH) -> None:
    """Copy files of a run directory to the same place on hosts.

    Args:
        hosts: as the hostfile names them.
        run: the run directory, absolute.
        names: files, relative to it.
        way: how the hosts are reached.

    Raises:
        PreflightError: a host can't be reached, or can't write there.
    """
    files = {}
    for name in names:
        file = run / name
        mode = file.stat().st_mode & 0o777
        files[name] = {"content": _packed(file.read_bytes()), "mode": mode}
    said = json.dumps({"put": {"folder": str(run), "files": files}})
    failed = [
        a
        for a in run_everywhere(hosts, _ARGV, said=said, seconds=_SECONDS, transport=transport)
        if not a.ok
    ]
    if failed:
        raise PreflightError(
            f"the run's files can't be copied to {', '.join(answer.host for answer in failed)}: "
            f"{_last_line(failed[0])}",
            where=Where(file=run),
            hint="`-o DIR` on a folder that all hosts share, or one that can be written on each",
        )


def fetch(hosts: Sequence[str], run: Path, folder: str, transport: Transport = SSH) -> list[Path]:
    """Bring the files of a folder of the run directory here, where they aren't yet.

    A host that can't be reached any more gives nothing. Long files lose their beginning.
    """
    said = json.dumps({"get": {"folder": str(run / folder)}})
    made = []
    for answer in run_everywhere(hosts, _ARGV, said=said, seconds=_SECONDS, transport=transport):
        if not answer.ok:
            continue
        for name, content in json.loads(answer.stdout).items():
            file = run / folder / _inside(name)
            if not file.exists():
                file.write_bytes(base64.b64decode(content))
                made.append(file)
    return made


def put(folder: Path, files: Mapping[str, Mapping[str, str | int]]) -> Mapping[str, str]:
    """Write files below a folder of this host, each whole, with its mode."""
    for name, file in files.items():
        path = folder / _inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        # for its owner alone from the first byte on
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(base64.b64decode(str(file["content"])))
        partial.chmod(int(file["mode"]))
        partial.replace(path)
    return {}


def get(folder: Path) -> Mapping[str, str]:
    """Return the end of every file of a folder of this host."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as stream:
                stream.seek(max(0, path.stat().st_size - _FETCHED_BYTES))
                found[path.name] = _packed(stream.read())
    return found


def _inside(name: str) -> PurePosixPath:
    """A path that can't leave the folder it is put below.

    Raises:
        ValueError: it would.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} leads out of the folder")
    return path


def _packed(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _last_line(answer: Answer) -> str:
    if answer.exit_code is None:
        return f"no answer within {_SECONDS:.0f} s"
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {answer.exit_code}"


_VERBS: Mapping[str, Callable[..., Mapping[str, str]]] = {"put": put, "get": get}


def main() -> None:
    """Do the one thing that stdin asks for."""
    signal.alarm(round(_SECONDS))  # nobody waits for the answer any longer
    request = json.loads(sys.stdin.read())
    ((verb, arguments),) = request.items()
    folder = Path(arguments.pop("folder"))
    sys.stdout.write(json.dumps(_VERBS[verb](folder, **arguments)) + "\n")


if __name__ == "__main__":
    main()
