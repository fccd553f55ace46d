"""The resume table, a part of `make matrix`: from every layout into every other one, by real runs.

    python -m benchmarks.resumes [--minutes N] [--file FILE] [WORD…]

An undisturbed run of six steps in each layout, and for each other layout a copy of it as it was
after three, which is continued there: its losses are compared with the undisturbed ones, and each
sample must have been learnt once. What is found is kept in resumes.json; only pairs that it
lacks are run. How far two layouts differ without a break is measured, too: that is the bound.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from benchmarks.matrix import BUILD, Silent
from dslm.codec import Strict, decode, encode
from dslm.decide.axes import FAMILIES
from dslm.decide.matrix import installed
from dslm.errors import DslmError
from dslm.files import write_atomic
from dslm.launch.outcome import Status
from dslm.lifecycle.fleet import fleet_of
from dslm.lifecycle.placement import Placement
from dslm.lifecycle.request import TrainingRequest
from dslm.lifecycle.training import train
from dslm.recipe.load import load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from dslm.run.samples import samples_of_steps
from tests.support.warm import work_beside

FILE = Path(__file__).with_suffix(".json")
HALF, WHOLE = 3, 6
BATCH = 8
MOST = 1e-4  # what a pair may differ by, in any case
SETTINGS = (
    "model.tokenizer.vocab_size=300", "data.max_documents=60", "data.eval=0",
    "data.sequence_length=32", f"batch.global_size={BATCH}", "batch.micro_size=2",
    "optimizer.lr=0.001", "schedule={name: constant, warmup: 1}", "precision=fp32", "log.every=1",
    "log.samples=true", f"checkpoint.every={HALF}", "evaluation.sample=null", "watchdog.timeout=90",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """A number of ranks, a stage, and what they share by twos."""

    ranks: int
    stage: int
    shared: str = ""

    def __str__(self) -> str:
        return f"{self.shared} 2 × {self.ranks}" if self.shared else f"{self.stage} × {self.ranks}"

    @property
    def settings(self) -> dict[str, int]:
        """What it sets in a recipe."""
        sizes = {f"parallel.{name}": 1 for name in ("tensor", "sequence", "expert")}
        if self.shared:
            sizes[f"parallel.{self.shared}"] = 2
        return {"parallel.zero_stage": self.stage, "parallel.ranks": self.ranks, **sizes}


_PLAIN = tuple(Layout(ranks, stage) for stage in (0, 1, 2, 3) for ranks in (1, 2, 4))
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "llama": (*_PLAIN, *(Layout(r, 1, s) for s in ("tensor", "sequence") for r in (2, 4))),
    "qwen3_moe": (*_PLAIN, *(Layout(ranks, 1, "expert") for ranks in (2, 4))),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found(Strict):
    """What was found: how far undisturbed runs differ, and each pair; text says what went wrong."""

    made: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Mapping[str, float | str]]] = field(default_factory=dict)

    def bound(self, family: str) -> float:
        """How far the losses of two undisturbed runs differ at most that began with one model."""
        return max((off_by(a, b) for a, b in self._alike(family)), default=0.0)

    def _alike(self, family: str) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
        # under stage 3 transformers draws the initial weights in another order than below it
        curves = self.curves.get(family, {})
        for one, other in permutations(curves, 2):
            if one.startswith("3 ") == other.startswith("3 "):
                yield curves[one], curves[other]


def wanted(family: str) -> list[tuple[Layout, Layout]]:
    """All ordered pairs of a family; of a mixture those in which experts are shared."""
    pairs = list(permutations(LAYOUTS[family], 2))
    shared = any(layout.shared == "expert" for layout in LAYOUTS[family])
    return [p for p in pairs if not shared or any(each.shared for each in p)]


def _train(family: str, layout: Layout, run: Path) -> str:
    """Train in a layout, anew or on; says what went wrong."""
    architecture = next(each.architecture for each in FAMILIES if each.name == family)
    given = [f"model.architecture={json.dumps(architecture)}", *SETTINGS]
    given += [f"{key}={value}" for key, value in layout.settings.items()]
    loaded = load_recipe("quickstart", [*given, f"duration.steps={WHOLE}"])
    fleet = fleet_of(Placement(num_gpus=layout.ranks))
    request = TrainingRequest(recipe=loaded, fleet=fleet, output=run, force=True)
    try:
        ended = train(request, Silent())
    except DslmError as failure:
        return failure.message
    if ended.outcome.status is Status.DONE:
        return ""
    event = read_history(ended.run).failure
    return event.message if event else ended.outcome.reason


def curve(run: Path) -> tuple[float, ...]:
    """The loss of every step of a run."""
    return tuple(step.loss or 0.0 for step in read_history(RunDirectory(run)).steps)


def off_by(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """How far the losses of two runs differ at most."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _made(family: str, layout: Layout) -> Path:
    """The undisturbed run of a layout; made once."""
    run = BUILD / "resumes" / family / str(layout).replace(" ", "").replace("×", "-")
    if not (run / "model").is_dir():
        shutil.rmtree(run, ignore_errors=True)
        why = _train(family, layout, run)
        if why:
            raise SystemExit(f"{family}, {layout}: {why}")
    return run


def pair(family: str, before: Layout, after: Layout) -> float | str:
    """Go on from one layout in another: how far its losses are off, or what went wrong."""
    whole = _made(family, before)
    with tempfile.TemporaryDirectory() as folder:
        run = _half(whole, Path(folder) / "run")
        why = _train(family, after, run)
        if why:
            return why
        seen = samples_of_steps(RunDirectory(run))
        places = [place for step in seen.values() for place in step]
        if seen != samples_of_steps(RunDirectory(whole)) or len({*places}) != WHOLE * BATCH:
            return "not every sample once"
        second = [s.step for s in read_history(RunDirectory(run)).steps if s.attempt == 2]
        if second != list(range(HALF + 1, WHOLE + 1)):
            return f"the second attempt made the steps {second}"
        return off_by(curve(run), curve(whole))


def recorded(file: Path = FILE) -> Found:
    """What was found before, whatever it was found with."""
    return decode(Found, file.read_bytes()) if file.is_file() else Found()


def _half(whole: Path, run: Path) -> Path:
    """A copy of a run as it was when half of its steps were made and saved."""
    shutil.copytree(whole, run)
    for later in (run / "checkpoints" / f"step-{WHOLE}", run / "model"):
        shutil.rmtree(later)
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    saved = f'"path": "checkpoints/step-{HALF}"'
    end = next(number for number, line in enumerate(events, 1) if saved in line)
    (run / "events.jsonl").write_text("".join(events[:end]))
    return run


def begun(file: Path) -> Found:
    """What there is, unless other versions are installed."""
    old = recorded(file)
    return old if old.versions == installed() else Found(versions=installed())


def kept(file: Path, found: Found, name: str, family: str, more: Mapping[str, Any]) -> Found:
    """What was found with something more in a table of a family, written down."""
    tables = getattr(found, name)
    table = {**tables, family: {**tables.get(family, {}), **more}}
    made = replace(found, made=time.strftime("%Y-%m-%d"), **{name: table})
    document = encode(made)
    rows = ",\n".join(f"{json.dumps(key)}: {_shown(value)}" for key, value in document.items())
    write_atomic(file, "{\n" + rows + "\n}\n")
    return made


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        return json.dumps(value)
    families = []
    for name, table in value.items():
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in table.items())
        families.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(families) + "\n}"


def left(found: Found, words: tuple[str, ...]) -> list[tuple[str, Layout, Layout]]:
    """The pairs that nothing is known of, in an order of their own."""
    rows = [
        (family, before, after)
        for family in LAYOUTS
        for before, after in wanted(family)
        if str(after) not in found.pairs.get(family, {}).get(str(before), {})
        and all(word in f"{family}: {before} → {after}" for word in words)
    ]
    random.Random(1).shuffle(rows)
    return rows


def run(words: tuple[str, ...], minutes: float | None, file: Path) -> Found:
    """Run what is left."""
    found, began = begun(file), time.monotonic()
    todo = left(found, words)
    for number, (family, before, after) in enumerate(todo, 1):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            break
        for layout in (before, after):
            if str(layout) not in found.curves.get(family, {}):
                losses = curve(_made(family, layout))
                found = kept(file, found, "curves", family, {str(layout): losses})
        off = pair(family, before, after)
        row = {**found.pairs.get(family, {}).get(str(before), {}), str(after): off}
        found = kept(file, found, "pairs", family, {str(before): row})
        said = off if isinstance(off, str) else f"{off:.1e}"
        print(f"[{number}/{len(todo)}] {family}: {before} → {after}: {said}", flush=True)
    return found


def work(arguments: Sequence[str]) -> None:
    """Run pairs, and say how many are known by then."""
    parser = argparse.ArgumentParser(description="From every layout into every other one.")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--file", type=Path, default=FILE)
    given = parser.parse_args(arguments)
    found = run(tuple(given.words), given.minutes, given.file)
    for family in LAYOUTS:
        pairs = [off for row in found.pairs.get(family, {}).values() for off in row.values()]
        numbers = [off for off in pairs if isinstance(off, float)]
        print(
            f"{family}: {len(pairs)} of {len(wanted(family))} pairs, {len(numbers)} went on, "
            f"{max(numbers, default=0):.1e} off at most; without a break {found.bound(family):.1e}"
        )


if __name__ == "__main__":
    sys.exit(work_beside("benchmarks.resumes", sys.argv[1:]))
