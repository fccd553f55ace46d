"""`make bench`: run the benchmarks and write docs/benchmarks.md, a section each."""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks import checkpoints, data, startup, training

TITLE = "# Benchmarks\n\nBoth sides of each ratio were measured in one run, alternating.\n"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def machine() -> str:
    """The machine in a line: processor, cores, memory, versions."""
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


def section(name: str, report: str) -> str:
    """One part of the page: its report, with the command, the day and the machine."""
    command = f"`python -m benchmarks {name}`, {time.strftime('%Y-%m-%d')}, on: {machine()}."
    return f"<!-- {name} -->\n{report}\n{command}\n<!-- end of {name} -->\n"


def page(old: str, sections: dict[str, str]) -> str:
    """The page with these sections in place of their old ones; new ones come at the end."""
    text = old or TITLE
    for name, new in sections.items():
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        after = rest.partition(f"<!-- end of {name} -->\n")[2]
        text = f"{before}{new}{after}" if found else f"{text}\n{new}"
    return text


def main() -> None:
    """Run all parts, or those that are named; print their tables and put them on the page."""
    parts = {"startup": startup, "training": training, "data": data, "checkpoints": checkpoints}
    for name in sys.argv[1:] or parts:
        report = parts[name].report()
        print(report, flush=True)
        old = PAGE.read_text() if PAGE.is_file() else ""
        PAGE.write_text(page(old, {name: section(name, report)}))


if __name__ == "__main__":
    main()
