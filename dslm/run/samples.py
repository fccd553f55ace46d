"""Which samples a run was trained on, step by step, as its ranks wrote them down (`log.samples`).

A line of JSON a step and rank: `step` (from 1) and `places`. Of ranks that share layers or
sequences, and so are trained on the same samples, the first writes. A place is
epoch × count + index, so that a sample seen in a second epoch can be told from the first time.
"""

from __future__ import annotations

import json
from pathlib import Path

from dslm.files import append_line
from dslm.run.directory import RunDirectory


def append_samples(path: Path, step: int, places: list[int]) -> None:
    """Write down what a rank was trained on in a step."""
    append_line(path, json.dumps({"step": step, "places": places}))


def samples_of_steps(run: RunDirectory) -> dict[int, list[int]]:
    """The places of each step over all ranks, sorted, of the last attempt that made the step."""
    found: dict[int, tuple[int, list[int]]] = {}
    for file in run.path.glob("logs/attempt-*/rank-*.samples.jsonl"):
        attempt = int(file.parent.name.rpartition("-")[2])
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            last, places = found.get(entry["step"], (0, []))
            if attempt >= last:
                before = places if attempt == last else []
                found[entry["step"]] = attempt, [*before, *entry["places"]]
    return {step: sorted(places) for step, (_, places) in sorted(found.items())}
