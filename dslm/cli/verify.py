"""`dslm verify`: does this layout learn what one process would, on this machine?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import complete, options, terminal
from dslm.lifecycle.placement import Placement

if TYPE_CHECKING:
    from dslm.lifecycle.request import TrainingRequest
    from dslm.lifecycle.verifying import Pair, Verification

STEPS = 3
Steps = Annotated[int, typer.Option("--steps", min=1, max=20, help="Optimizer steps to compare.")]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="RECIPE",
        help="Verify this recipe's layout, too, on the same hosts.",
        autocompletion=complete.recipes,
    ),
]


@options.placed()
def verify(
    recipe: options.RecipeArgument,
    with_: options.With = None,
    set_: options.Set = None,
    placement: Placement = options.ANYWHERE,
    steps: Steps = STEPS,
    against: Against = None,
    master_port: options.MasterPort = None,
    output: options.Output = None,
    json: options.Json = False,
) -> None:
    """Compare a recipe's layout with one plain process: losses, gradients, updates, replicas.

    The model is cut to few layers of each kind; the data, the parallelism, the precision and the
    DeepSpeed config are the recipe's own. Exit code 5: they differ; then what causes it is sought.

    [dim]Examples:[/dim]

        dslm verify llama-3.1-8b --set data.train=corpus/ --num-gpus 8

        dslm verify mine.yaml --against other.yaml --json
    """
    from dslm.lifecycle.fleet import fleet_of
    from dslm.lifecycle.request import TrainingRequest
    from dslm.lifecycle.verifying import compared_layouts
    from dslm.recipe.load import load_recipe

    requests: list[TrainingRequest] = []
    for name in (recipe, *([against] if against else [])):
        loaded = load_recipe(name, options.settings(set_, with_))
        requests.append(
            TrainingRequest(
                recipe=loaded,
                fleet=fleet_of(placement, loaded.recipe.parallel.ranks),
                output=output if not requests else None,
                master_port=master_port,
                command=tuple(sys.argv),
            )
        )
    done = [verify_one(requests[0], steps)]
    document = _document(done[0])
    if against:
        done.append(verify_one(requests[1], steps, like=done[0]))
        pair = compared_layouts(done[0], done[1])
        terminal.say(pair.sentence)
        document = {"layouts": [_document(each) for each in done], **pair.document}
    if json:
        terminal.write_json(document)
    refuse_differences(done)
    if against:
        refuse_apart(pair)


def verify_one(
    request: TrainingRequest, steps: int = STEPS, like: Verification | None = None
) -> Verification:
    """Verify one layout and show what was found; `like`: one that it shall be compared with."""
    from rich.markup import escape

    from dslm.cli.screens.verified import VerifyScreen, compared, verified_panel
    from dslm.lifecycle import verifying

    done = verifying.verify(request, VerifyScreen(terminal.say), steps, like)
    if done.found.same:
        line = (
            f"[bold green]verified[/] {escape(request.recipe.name)}: {escape(compared(done.found))}"
        )
        terminal.say(terminal.styled(line))
    else:
        terminal.say(verified_panel(done.found, done.known))
    return done


def refuse_differences(done: list[Verification]) -> None:
    """End with exit code 5 where a layout differs.

    Raises:
        Differs: it does.
    """
    from dslm.errors import Differs, Where

    wrong = [each for each in done if not each.found.same]
    if wrong:
        found = wrong[0].found
        first = found.differences[0]
        raise Differs(
            f"the layout does not learn what one process would: {first.kind} ({first.name}), from "
            f"step {first.step} on",
            where=Where(file=terminal.shown_path(wrong[0].run.path)),
            hint=(f"the cause is {found.cause}; " if found.cause else "")
            + "verified.json in the run directory has all of it",
        )


def refuse_apart(pair: Pair) -> None:
    """End with exit code 5 where two layouts of one training give different losses.

    Raises:
        Differs: they do.
    """
    from dslm.errors import Differs

    if pair.differs:
        raise Differs("the two layouts don't learn the same: " + pair.sentence)


def _document(done: Verification) -> dict[str, object]:
    from dslm.run.events import as_record

    return {**as_record(done.found), "known": list(done.known), "run": str(done.run.path)}
