"""`make fuzz`: every target for a while; prints executions, seconds and findings.

The argument is the number of seconds in all, 300 if there is none.
"""

from __future__ import annotations

import sys
import time

from tests.fuzz.driver import Tally, fuzz
from tests.fuzz.targets import TARGETS, Target

_ROUND = 400


def run(target: Target, seconds: float) -> tuple[Tally, float]:
    """Fuzz a target in rounds, each with a seed of its own, until the time is over."""
    tally, began = Tally(), time.monotonic()
    number = 0
    while time.monotonic() - began < seconds:
        try:
            fuzz(target, _ROUND, number, tally)
        except Exception as failure:  # noqa: BLE001 - that is what is looked for
            notes = " ".join(getattr(failure, "__notes__", ()))
            tally.findings.append(f"{type(failure).__name__}: {failure} {notes}"[:2000])
        number += 1
    return tally, time.monotonic() - began


def main() -> int:
    """Print a row a target; 1 if anything was found."""
    whole = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    found = False
    print(f"{'target':24}{'executions':>12}{'refused':>10}{'seconds':>9}{'findings':>10}")
    for target in TARGETS:
        tally, seconds = run(target, whole / len(TARGETS))
        counts = f"{tally.executions:12}{tally.refused:10}{seconds:9.1f}{len(tally.findings):10}"
        print(f"{target.name:24}{counts}", flush=True)
        for finding in dict.fromkeys(tally.findings):
            found = True
            print(f"    {finding}")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
