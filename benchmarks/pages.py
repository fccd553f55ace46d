"""The pages of docs/ that benchmarks write: a section each, with its command, day and machine."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path

_DOCS = Path(__file__).parent.parent / "docs"


def machine() -> str:
    """The machine in a line: processor, cores, memory, load, versions."""
    import psutil

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers", "accelerate")
    )
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"load {psutil.getloadavg()[0]:.1f}, Python {platform.python_version()}, {packages}"
    )


class Section:
    """A part of a page that one command writes; made before it measures, when the load is others'.

    Args:
        page: the file's name in docs/.
        command: what makes it; also its marker on the page.
    """

    def __init__(self, page: str, command: str) -> None:
        self._file, self._command = _DOCS / page, command
        self._source = f"`{command}`, {time.strftime('%Y-%m-%d')}, on: {machine()}."

    def write(self, report: str) -> None:
        """Print a report and put it in place of the old one; a new one comes at the end."""
        print(report, flush=True)
        begin, end = f"<!-- {self._command} -->\n", f"<!-- end of {self._command} -->\n"
        section = f"{begin}{report.rstrip()}\n\n{self._source}\n{end}"
        text = self._file.read_text() if self._file.is_file() else ""
        before, found, rest = text.partition(begin)
        after = rest.partition(end)[2]
        self._file.write_text(f"{before}{section}{after}" if found else f"{text}\n{section}")
