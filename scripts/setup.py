"""Make a virtual environment with everything that is pinned, and show what is going on.

    python3 scripts/setup.py FOLDER --extras lora,trl [--torch cpu]

Says before the first download how large it will be, then which package is being fetched and for
how long that has taken. Standard library only: it runs before anything is installed. What pip
printed is in FOLDER/setup.log.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# https://pytorch.org/get-started/locally: where the builds without CUDA are for Linux
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SIZES = {
    "cpu": "about 0.5 GB to download, 1.8 GB on disk",
    "default": "0.5 to 5 GB to download and 1.8 to 8 GB on disk, the more of it the CUDA libraries "
    "that torch brings with it",
}
_SHOWN = re.compile(r"^\s*(Collecting|Downloading|Building|Preparing)\b")
_TICK_SECONDS = 1.0  # between two updates of the line on a terminal
_LINE_SECONDS = 20.0  # between two lines elsewhere, such as in a log of continuous integration
_LAST_LINES = 15


class Screen:
    """One line that is updated on a terminal; now and then a line elsewhere."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self.doing = "making the environment"

    def update(self, *, now: bool = False) -> None:
        """Show what is being done, and for how long the set-up has run."""
        seconds = time.monotonic() - self._began
        due = _TICK_SECONDS if self._terminal else _LINE_SECONDS
        if not now and seconds - self._last < due:
            return
        self._last = seconds
        line = f"[{seconds // 60:.0f}:{seconds % 60:02.0f}] {self.doing}"
        if self._terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r\x1b[K{line}")
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        sys.stderr.write(f"\r\x1b[K{line}\n" if self._terminal else f"{line}\n")
        sys.stderr.flush()


def told(line: str) -> str:
    """Return what a line of pip's says to people; empty if nothing."""
    if line.startswith("Installing collected packages:"):
        return f"Installing {line.count(',') + 1} packages"
    return line.partition(" (from ")[0] if _SHOWN.match(line) else ""


def run(argv: list[str], screen: Screen, log: Path) -> None:
    """Run a command; show its lines of interest as they come.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    with (
        log.open("ab") as kept,
        subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip,
    ):
        assert pip.stdout is not None
        rest = b""
        while True:
            readable, _, _ = select.select([pip.stdout], [], [], _TICK_SECONDS)
            if readable:
                received = os.read(pip.stdout.fileno(), 65536)
                if not received:
                    break
                kept.write(received)
                *lines, rest = (rest + received).split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace").strip()
                    screen.doing = told(text) or screen.doing
            screen.update()
    if pip.returncode:
        last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        screen.say("\n".join(["the installation failed; pip said:", *last, f"all of it: {log}"]))
        raise SystemExit(1)


def main() -> None:
    """Make the environment; leave it unmarked when anything fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", default="")
    parser.add_argument("--torch", choices=("cpu", "default"), default="default")
    parser.add_argument("--torch-index", default=CPU_INDEX, help="where --torch cpu looks")
    given = parser.parse_args()
    screen, log = Screen(), given.folder / "setup.log"
    screen.say(f"making {given.folder} with torch, DeepSpeed, transformers: {SIZES[given.torch]}")
    if given.torch == "default" and shutil.which("nvidia-smi") is None:
        screen.say("no NVIDIA driver is here: `make setup TORCH=cpu` takes the build without CUDA")
    screen.update(now=True)
    venv.create(given.folder, with_pip=True)
    log.unlink(missing_ok=True)
    pip = [
        str((given.folder / "bin" / "pip").absolute()),
        "install", "--progress-bar", "off", "--disable-pip-version-check",
        "--constraint", "constraints.txt",
    ]  # fmt: skip
    # torch first: DeepSpeed's own set-up imports it
    run([*pip, "setuptools", "wheel"], screen, log)
    index = ["--index-url", given.torch_index] if given.torch == "cpu" else []
    run([*pip, *index, "torch"], screen, log)
    run([*pip, "--editable", f".[{given.extras}]"], screen, log)
    screen.doing = "done"
    screen.update(now=True)
    screen.say("")


if __name__ == "__main__":
    main()
