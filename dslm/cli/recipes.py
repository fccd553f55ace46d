"""`dslm recipes`: the presets, one's own recipes, and the schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import complete, options, terminal

app = typer.Typer(
    help="List, show and write recipes.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command("list")
def list_(
    task: Annotated[
        str | None, typer.Option(help="Only presets of this task.", autocompletion=complete.tasks)
    ] = None,
    json: options.Json = False,
) -> None:
    """List the presets that ship with dslm.

    [dim]Example:[/dim] dslm recipes list --task mlm
    """
    from typing import get_args

    from dslm.errors import OptionError, Where, did_you_mean
    from dslm.profile.store import preset_parameters
    from dslm.recipe.catalog import entries
    from dslm.recipe.schema import Task
    from dslm.units import render_count

    if task is not None and task not in get_args(Task):
        raise OptionError(
            f"there is no task `{task}`",
            where=Where(key="--task"),
            hint=did_you_mean(task, get_args(Task)) or f"there are: {', '.join(get_args(Task))}",
        )
    rows = [
        {
            "name": preset.name,
            "task": preset.task,
            "parameters": preset_parameters().get(preset.name),
            "description": preset.description,
        }
        for preset in entries()
        if task is None or preset.task == task
    ]
    if json:
        terminal.write_json(rows)
        return
    from rich.table import Table

    table = Table("name", "task", "parameters", "description", box=None, header_style="bold")
    table.columns[2].justify = "right"
    for row in rows:
        parameters = row["parameters"]
        table.add_row(
            str(row["name"]),
            str(row["task"]),
            render_count(parameters) if isinstance(parameters, int) else "-",
            str(row["description"]),
        )
    terminal.show(table)


@app.command("show", no_args_is_help=True)
def show(
    recipe: options.RecipeArgument, set_: options.Set = None, json: options.Json = False
) -> None:
    """Show a recipe as dslm reads it: with what it extends, every default and every override.

    [dim]Example:[/dim] dslm recipes show llama-3.2-1b --set batch.global_size=128
    """
    from dslm.recipe.load import dump_recipe, load_recipe

    loaded = load_recipe(recipe, set_ or ())
    if json:
        terminal.write_json(loaded.recipe.model_dump(mode="json"))
    else:
        terminal.write(dump_recipe(loaded.recipe))


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    [dim]Example:[/dim] dslm recipes schema > recipe.schema.json
    """
    from dslm.recipe.catalog import recipe_schema

    terminal.write_json(recipe_schema())


@app.command("new", no_args_is_help=True)
def new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.")],
    preset: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PRESET",
            help="The preset that it extends.",
            autocompletion=complete.presets,
        ),
    ] = "quickstart",
) -> None:
    """Write a recipe of your own that extends a preset.

    [dim]Example:[/dim] dslm recipes new mine.yaml --from llama-3.2-1b
    """
    from dslm.errors import OptionError, Where
    from dslm.files import write_atomic
    from dslm.recipe.catalog import new_recipe_text

    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(path.name + ".yaml")
    if path.exists():
        raise OptionError("the file is there already", where=Where(file=path))
    text = new_recipe_text(preset)
    try:
        write_atomic(path, text)
    except OSError as failure:
        raise OptionError(
            f"can't write it: {failure.strerror}", where=Where(file=path)
        ) from failure
    terminal.say(f"wrote {path}; next: set `data.train` in it, then `dslm train {path}`")
