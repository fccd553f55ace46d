"""`dslm evaluate`: how good a trained model is, beside another one."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import options, terminal
from dslm.cli.answering import Step, Target

if TYPE_CHECKING:
    from dslm.run.evaluations import Evaluation


def evaluate(
    model: Target,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,…", help="Tasks of lm-evaluation-harness."),
    ] = None,
    task_folder: Annotated[
        Path | None,
        typer.Option("--task-folder", metavar="DIR", help="A folder of task files of your own."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL", help="Evaluate another too; `base`: its own base."
        ),
    ] = None,
    checkpoint: Step = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many samples a task.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Samples in a batch of the tasks.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask the tasks' questions by the chat template.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Evaluate a run on the data that it held out, and any model on tasks.

    The scores of a run are kept with it: `dslm runs show` and its model card have them.

    [dim]Examples:[/dim]

        dslm evaluate runs/mine --against base

        dslm evaluate runs/mine --tasks arc_easy,hellaswag

        dslm evaluate org/model --tasks mine --task-folder tasks/
    """
    from dslm.ask import models
    from dslm.ask.call import ask
    from dslm.errors import OptionError, Where
    from dslm.run.evaluations import Evaluation, add_evaluation

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if names and importlib.util.find_spec("lm_eval") is None:
        raise OptionError(
            "tasks need lm-evaluation-harness, which is not installed",
            where=Where(key="--tasks"),
            hint="pip install 'dslm[evaluate]'",
        )
    given = {"--task-folder": task_folder, "--limit": limit, "--batch": batch, "--chat": chat}
    if not names:
        options.refuse_ignored(given, "without `--tasks`")
    if task_folder is not None and not task_folder.is_dir():
        raise OptionError("there is no such folder", where=Where(file=task_folder))
    with terminal.busy() as tell:
        first = models.meant(model, checkpoint, tell)
        if first.run is None and not names:
            raise OptionError(
                f"`{model}` is no run with data of its own: name tasks",
                where=Where(key="--tasks"),
                hint="such as `--tasks arc_easy`, or files of your own by `--task-folder`",
            )
        other = models.against(first, against, tell) if against is not None else None
        request = {
            "model": first.name,
            "run": str(first.run.path) if first.run is not None else None,
            "own": first.run is not None and not names,
            "against": other,
            "trusted": first.trusted,
            "tasks": names,
            "task_folder": str(task_folder.absolute()) if task_folder is not None else None,
            "limit": limit,
            "batch": batch,
            "chat": chat,
        }
        scores = ask("dslm.worker.score", request, tell)["scores"]
    found = Evaluation(
        time=time.time(),
        model=first.name,
        step=first.step,
        scores=scores[0],
        against=other,
        others=scores[1] if other is not None else {},
    )
    if first.run is not None:
        add_evaluation(first.run, found)
        _renew_card(first.run.path, first.run.model)
    if json:
        terminal.write_json(
            {"model": found.model, "scores": found.scores, "against": other, "others": found.others}
        )
    else:
        _show(found)


def _renew_card(run: Path, model: Path) -> None:
    """Write the card of the run's exported model anew, with what was evaluated."""
    from dslm.ask.call import ask

    if (model / "README.md").is_file():
        ask("dslm.worker.model_card", {"run": str(run)})


def _show(found: Evaluation) -> None:
    from dslm.cli.screens.evaluations import table

    terminal.show(table(found))
