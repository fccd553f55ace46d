"""`dslm tune`: find the fastest strategy of a recipe by short real trials."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import options, terminal
from dslm.lifecycle.placement import Placement

if TYPE_CHECKING:
    pass

Trials = Annotated[int, typer.Option("--trials", min=1, help="At most so many trials.")]
Steps = Annotated[int, typer.Option("--steps", min=2, help="Steps of a trial that count.")]
Minutes = Annotated[
    float | None, typer.Option("--minutes", min=0, help="Begin no trial after so many minutes.")
]


@options.placed()
def tune(
    recipe: options.RecipeArgument,
    with_: options.With = None,
    set_: options.Set = None,
    placement: Placement = options.ANYWHERE,
    trials: Trials = 10,
    steps: Steps = 8,
    minutes: Minutes = None,
    output: options.Output = None,
    json: options.Json = False,
) -> None:
    """Try the plan's strategies for a few real steps each, and write a recipe with the fastest.

    The stage, the micro batch and recomputation are open, whatever the recipe says; offload only
    where it says `auto`. The same command continues what was ended before.

    [dim]Examples:[/dim]

        dslm tune quickstart

        dslm tune llama-3.2-1b --set data.train=corpus/ --minutes 30 -o tuning

        dslm train tuning/tuned.yaml
    """
    from dslm.cli.screens.tuning import TuningScreen
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.request import TrainingRequest
    from dslm.lifecycle.tuning import TUNED, Tuning
    from dslm.lifecycle.tuning import tune as run_trials
    from dslm.plan.tuning import best
    from dslm.recipe.load import load_recipe

    settings = options.settings(set_, with_)
    loaded = load_recipe(recipe, settings)
    folder = (output or Path(f"tune-{loaded.name}")).absolute()
    tuning = Tuning(
        recipe=recipe,
        settings=tuple(settings),
        request=TrainingRequest(
            recipe=loaded,
            fleet=fleet_of(placement, loaded.recipe.parallel.ranks),
            command=tuple(sys.argv),
        ),
        folder=folder,
        trials=trials,
        steps=steps,
        minutes=minutes,
    )
    with TuningScreen(terminal.people()) as screen:
        found = run_trials(tuning, screen.trial, screen.tell)
    winner = best(found)
    file = terminal.shown_path(folder) / TUNED
    if json:
        terminal.write_json(
            {"trials": [asdict(t) for t in found], "best": asdict(winner) if winner else None,
             "recipe": str(file)}
        )  # fmt: skip
        return
    terminal.say(f"next: dslm train {file}")
