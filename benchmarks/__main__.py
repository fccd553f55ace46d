"""`make bench`: run the benchmarks and write docs/benchmarks.md, a section each."""

from __future__ import annotations

import sys

from benchmarks import (
    against_trl,
    attention,
    checkpoints,
    data,
    example,
    first_step,
    guards,
    long_samples,
    portable,
    startup,
    training,
    verify,
)
from benchmarks.pages import Section


def main() -> None:
    """Run all parts, or those that are named; print their tables and put them on the page."""
    parts = {
        "startup": startup.report,
        "training": training.report,
        "first-step": first_step.report,
        "first-step-hosts": first_step.on_hosts,
        "example": example.report,
        "against-trl": against_trl.report,
        "data": data.report,
        "checkpoints": checkpoints.report,
        "guards": guards.report,
        "packed": attention.packed,
        "layouts": attention.layouts,
        "portable": portable.report,
        "long-samples": long_samples.report,
        "verify": verify.report,
    }
    unknown = sorted({*sys.argv[1:]} - {*parts})
    if unknown:
        sys.exit(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    for name in sys.argv[1:] or parts:
        section = Section("benchmarks.md", f"python -m benchmarks {name}")
        section.write(parts[name]())


if __name__ == "__main__":
    main()
