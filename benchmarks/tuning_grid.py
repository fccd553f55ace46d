"""`dslm tune` against the full grid: how far its winner is from the best of everything that fits.

`python -m benchmarks.tuning_grid FOLDER` on a machine that does nothing else. The grid of a recipe
is run twice, there and back, so that what changes with time hits all of it alike; each strategy has
the faster of its two medians. What the folder has isn't repeated.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dslm.decide.job import resolve_job
from dslm.lifecycle.fleet import fleet_of
from dslm.lifecycle.placement import Placement
from dslm.lifecycle.request import TrainingRequest
from dslm.lifecycle.trial import PROBING, Tuning, run_trial
from dslm.lifecycle.tuning import OPEN, chosen, tune
from dslm.plan.search import Candidate
from dslm.plan.tuning import KEYS, Trial, best
from dslm.recipe.load import load_recipe

STEPS, WARM_UP = 8, 2
BOUND = 1.03
_COMMON = ("data.max_documents=200", "data.sequence_length=128", "batch.global_size=16")
# recipe, ranks, overrides
RECIPES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "quickstart": ("quickstart", 2, _COMMON),
    "quickstart, one rank": ("quickstart", 1, _COMMON),
    "quickstart-mlm": ("quickstart-mlm", 2, _COMMON),
}


def tuning(name: str, folder: Path) -> Tuning:
    """What `dslm tune` is asked."""
    recipe, ranks, settings = RECIPES[name]
    request = TrainingRequest(
        recipe=load_recipe(recipe, settings), fleet=fleet_of(Placement(num_gpus=ranks))
    )
    return Tuning(
        recipe=recipe, settings=settings, request=request, folder=folder, steps=STEPS
    )  # fmt: skip


def candidates(asked: Tuning) -> list[Candidate]:
    """Every strategy that fits."""
    job = resolve_job(
        load_recipe(asked.recipe, [*asked.settings, *OPEN]), asked.request.fleet.cluster
    )
    return [one for one in (job.plan.choice, *job.plan.others) if one.fits]


def grid(asked: Tuning, minutes: float) -> dict[str, list[float]]:
    """Medians of each strategy, by its keys as JSON; as many as could be made in time."""
    began, file = time.monotonic(), asked.folder / "grid.json"
    found: dict[str, list[float]] = json.loads(file.read_text()) if file.is_file() else {}
    every = candidates(asked)
    for number, order in enumerate((every, every[::-1])):
        for one in order:
            key = json.dumps(chosen(one.strategy))
            if len(found.get(key, [])) > number or time.monotonic() - began > 60 * minutes:
                continue
            found.setdefault(key, []).append(_seconds(asked, one))
            asked.folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
    return found


def _seconds(asked: Tuning, one: Candidate) -> float:
    settings = [f"{key}={json.dumps(value)}" for key, value in chosen(one.strategy).items()]
    tried = run_trial(
        asked.request, load_recipe(asked.recipe, [*asked.settings, *settings, *PROBING]),
        asked.folder / "grid", steps=WARM_UP + STEPS, give_up=lambda steps: False,
        tell=lambda detail: None,
    )  # fmt: skip
    counted = [s.step_seconds for s in tried.steps if s.step > WARM_UP and s.step_seconds]
    return median(counted) if counted else float("inf")


def compared(trials: Sequence[Trial], found: dict[str, list[float]]) -> dict[str, Any]:
    """The winner's seconds in the grid beside the best of the grid."""
    winner = best(trials)
    if winner is None:
        raise LookupError("no trial was measured")
    seconds = {key: min(each) for key, each in found.items()}
    mine = seconds[json.dumps(chosen(winner))]
    return {
        "trials": len(trials), "grid": len(seconds), "winner": mine, "best": min(seconds.values()),
        "strategy": {name: getattr(winner, name) for name in KEYS},
    }  # fmt: skip


def main() -> int:
    """Run what isn't there yet, and say how far off each winner is."""
    folder, minutes = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
    missed = 0
    for name in RECIPES:
        asked = tuning(name, folder / name.replace(", ", "-").replace(" ", "-"))
        trials = tune(asked, lambda trials, trying: None, lambda detail: None)
        row = compared(trials, grid(asked, minutes))
        ratio = row["winner"] / row["best"]
        missed += ratio > BOUND
        print(f"{name}: {row['trials']} trials of {row['grid']}, {ratio:.3f} × the best: {row}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
