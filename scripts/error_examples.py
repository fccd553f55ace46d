"""One real example of each error: a command that a user may type, and what dslm answers.

`python scripts/docs.py --examples` runs them and writes docs/errors.md;
tests/docs/test_error_examples.py runs them again and compares.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DSLM = Path(sys.executable).with_name("dslm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A command that ends with an error: with which files beside it, interrupted after how long."""

    error: str  # the class
    argv: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    interrupted_by: str = ""  # once this file stands there, Ctrl-C
    is_stable: bool = True  # the text is the same on every machine and with every planner


EXAMPLES = (
    Example(
        error="RecipeError",
        argv=("config", "recipe.yaml"),
        files={"recipe.yaml": "extends: quickstart\noptimizer: {weight_decy: 0.1}\n"},
    ),
    Example(
        error="ConfigError",
        argv=("config", "--check", "ds_config.json"),
        files={
            "ds_config.json": '{\n  "train_micro_batch_size_per_gpu": 1,\n'
            '  "zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}\n}\n'
        },
    ),
    Example(
        error="HostfileError",
        argv=("hosts", "show", "hosts"),
        files={"hosts": "w1 slots=4\nw1 slots=2\n"},
    ),
    Example(
        error="DataError",
        argv=("data", "show", "recipe.yaml"),
        files={"recipe.yaml": "extends: quickstart\ndata: {train: [missing.txt]}\n"},
    ),
    Example(error="OptionError", argv=("runs", "show", "yesterday")),
    Example(
        error="PreflightError",
        argv=("hosts", "check", "nowhere.invalid:1"),
        is_stable=False,  # resolvers word it in their own way
    ),
    Example(error="DoesNotFit", argv=("plan", "llama-3.1-70b", "--gpus", "1"), is_stable=False),
    Example(
        error="RunFailed",
        argv=("launch", "fails.py"),
        files={"fails.py": 'raise ValueError("no such column: label")\n'},
    ),
    Example(
        error="Differs",
        argv=("verify", "recipe.yaml", "--steps", "1", "-o", "verified"),
        files={
            "recipe.yaml": "extends: quickstart\ndeepspeed: {communication_data_type: bf16}\n",
        },
        is_stable=False,
    ),
    Example(
        error="Interrupted",
        argv=("launch", "waits.py"),
        files={
            "waits.py": 'import pathlib, time\npathlib.Path("started").touch()\ntime.sleep(60)\n'
        },
        interrupted_by="started",
    ),
)  # fmt: skip


def run(
    example: Example, seconds: float = 120.0, program: Sequence[str] = (str(DSLM),)
) -> tuple[int, str]:
    """Run an example in an empty folder.

    Args:
        example: which.
        seconds: for all of it.
        program: what stands for `dslm`.

    Returns:
        Exit code, and stderr from its first finding or error on, without what differs from run to
        run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in example.files.items():
            (folder / file).write_text(text)
        process = subprocess.Popen(
            [*program, *example.argv],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
        )
        try:
            if example.interrupted_by:
                _wait_for(folder / example.interrupted_by, process, seconds)
                process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=seconds)
        finally:
            if process.poll() is None:
                process.kill()
        here = str(folder.resolve())
        said = said.replace(f"{here}/", "").replace(here, "/home/me")
        return process.returncode, _without_times(said)


def shown(example: Example) -> str:
    """The example as a console shows it: its files, its command, its answer."""
    lines = []
    for file, text in example.files.items():
        lines += [f"$ cat {file}", *text.splitlines()]
    code, said = run(example)
    ctrl_c = "    # and Ctrl-C" if example.interrupted_by else ""
    lines += [f"$ dslm {' '.join(example.argv)}{ctrl_c}", *said.splitlines(), "$ echo $?"]
    return "\n".join([*lines, str(code)])


def _without_times(said: str) -> str:
    """From the first finding or error on; the time in the name of a run is left out."""
    lines = said.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith("error: ")), 0)
    return re.sub(r"-\d{8}-\d{6}", "-TIME", "\n".join(line.rstrip() for line in lines[start:]))


def _wait_for(file: Path, process: subprocess.Popen[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
