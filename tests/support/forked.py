"""What stands for a launcher, a module or `dslm` where the fork server does the work.

Light: it lives as long as what was forked for it, one for each, and loads little more than Python.

    python forked.py SOCKET launch WORD …          DeepSpeed's launcher of a host, with its words
    python forked.py SOCKET module MODULE ARG …    `python -m MODULE ARG …`
    python forked.py SOCKET dslm ARG …             `dslm ARG …`

What is said to the server is in tests/support/warm.py, which answers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

ANSWERS = "DSLM_ANSWER_PIPE"  # as dslm.environment has it, which isn't loaded here


def ask(path: str, kind: str, words: Sequence[str]) -> int:
    """Ask the server for processes, and wait for their end: its code."""
    pipe = os.environ.get(ANSWERS) if kind == "module" else None
    streams = () if kind == "launch" else (0, 1, 2, *([int(pipe)] if pipe else []))
    asked = {"kind": kind, "words": words, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 - pathlib isn't loaded here
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"."], streams) if streams else server.sendall(b".")
        server.sendall(json.dumps(asked).encode() + b"\n")
        answer = server.recv(64)
    return int(answer or b"1")


if __name__ == "__main__":
    code = ask(sys.argv[1], sys.argv[2], sys.argv[3:])
    if code < 0 and sys.argv[2] == "module":  # by the same signal
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
