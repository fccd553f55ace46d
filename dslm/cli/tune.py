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
    from dslm.lifecycle.trial import Tuning

Trials = Annotated[int, typer.Option("--trials", min=1, help="At most so many trials.")]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=2, help="Steps of a trial; default: 8 that count, 50 with --over."),
]
Over = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="KEY=V1,V2,…",
        help="Try these values of a key instead of strategies; the lowest loss wins. Repeatable.",
    ),
]
Minutes = Annotated[
    float | None, typer.Option("--minutes", min=0, help="Begin no trial after so many minutes.")
]


@options.placed()
def tune(
    recipe: options.RecipeArgument,
    with_: options.With = None,
    set_: options.Set = None,
    placement: Placement = options.ANYWHERE,
    over: Over = None,
    trials: Trials = 10,
    steps: Steps = None,
    minutes: Minutes = None,
    output: options.Output = None,
    json: options.Json = False,
) -> None:
    """Try the plan's strategies for a few real steps each, and write a recipe with the fastest.

    The stage, the micro batch and recomputation are open, whatever the recipe says; offload only
    where it says `auto`. With `--over` the strategy is the recipe's, and other values of its keys
    are tried. The same command continues what was ended before.

    [dim]Examples:[/dim]

        dslm tune quickstart

        dslm tune llama-3.2-1b --set data.train=corpus/ --minutes 30 -o tuning

        dslm tune quickstart --over optimizer.lr=1e-3,3e-3,1e-2 --steps 40

        dslm train tuning/tuned.yaml
    """
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.request import TrainingRequest
    from dslm.lifecycle.trial import TUNED, Tuning
    from dslm.recipe.load import load_recipe

    settings = options.settings(set_, with_)
    loaded = load_recipe(recipe, settings)
    folder = (output or Path(f"tune-{loaded.name}{'-values' if over else ''}")).absolute()
    asked = Tuning(
        recipe=recipe,
        settings=tuple(settings),
        request=TrainingRequest(
            recipe=loaded,
            fleet=fleet_of(placement, loaded.recipe.parallel.ranks),
            command=tuple(sys.argv),
        ),
        folder=folder,
        trials=trials,
        steps=steps or (50 if over else 8),
        minutes=minutes,
    )
    found = _values(asked, over) if over else _strategies(asked)
    file = terminal.shown_path(folder) / TUNED
    if json:
        terminal.write_json({**found, "recipe": str(file)})
    else:
        terminal.say(f"next: dslm train {file}")


def _strategies(asked: Tuning) -> dict[str, object]:
    from dslm.cli.screens.tuning import TuningScreen, trial_line, trials_table
    from dslm.lifecycle.tuning import tune as run_trials
    from dslm.plan.tuning import best

    with TuningScreen(terminal.people(), trials_table, trial_line) as screen:
        found = run_trials(asked, screen.trial, screen.tell)
    winner = best(found)
    return {"trials": [asdict(t) for t in found], "best": asdict(winner) if winner else None}


def _values(asked: Tuning, over: list[str]) -> dict[str, object]:
    from dslm.cli.screens.tuning import TuningScreen, values_line, values_table
    from dslm.lifecycle.values import best_values, parse_over, search

    chosen = parse_over(over)
    with TuningScreen(terminal.people(), values_table, values_line) as screen:
        found = search(asked, chosen, screen.trial, screen.tell)
    winner = best_values(found)
    rows = [
        {"number": t.number, "values": t.values, "losses": t.losses, "loss": t.loss,
         "given_up": t.given_up, "why": t.why}
        for t in found
    ]  # fmt: skip
    return {"trials": rows, "best": rows[found.index(winner)] if winner else None}
