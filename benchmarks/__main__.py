"""`make bench`: run the benchmarks and write docs/benchmarks.md."""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks import checkpoints, data, startup, training

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
        f"Python {platform.python_version()}, {packages}"
    )


def main() -> None:
    """Run everything (or the parts named), print the tables, write the page when all ran."""
    parts = {"startup": startup, "training": training, "data": data, "checkpoints": checkpoints}
    wanted = sys.argv[1:] or list(parts)
    sections = [f"# Benchmarks\n\n`make bench`, {time.strftime('%Y-%m-%d')}, on: {machine()}.\n"]
    for name in wanted:
        sections.append(parts[name].report())
        print(sections[-1], flush=True)
    if wanted == list(parts):
        PAGE.write_text("\n".join(sections))


if __name__ == "__main__":
    main()
