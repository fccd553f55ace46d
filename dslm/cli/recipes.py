"""`dslm recipes`: the presets, one's own recipes, and the schema for editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import complete, options, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from dslm.recipe.catalog import Preset

app = typer.Typer(
    help="List, show and write recipes.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command("list")
def list_(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only those with one of these in their names."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Only presets of this task.", autocompletion=complete.tasks)
    ] = None,
    json: options.Json = False,
) -> None:
    """List the models and the purposes that ship with dslm.

    [dim]Examples:[/dim]

        dslm recipes list qwen3 gemma

        dslm recipes list --task mlm
    """
    from typing import get_args

    from dslm.errors import OptionError, Where, did_you_mean
    from dslm.profile.store import preset_parameters
    from dslm.recipe.catalog import entries, purposes
    from dslm.recipe.schema import Task

    if task is not None and task not in get_args(Task):
        raise OptionError(
            f"there is no task `{task}`",
            where=Where(key="--task"),
            hint=did_you_mean(task, get_args(Task)) or f"there are: {', '.join(get_args(Task))}",
        )

    def wanted(name: str, kind: str | None) -> bool:
        named = not words or any(word.lower() in name for word in words)
        return named and task in (None, kind)

    found = [preset for preset in entries() if wanted(preset.name, preset.task)]
    sizes = preset_parameters()
    aims = [purpose for purpose in purposes() if wanted(purpose.name, purpose.task)]
    if words and not found and not aims:
        raise OptionError(
            f"no model and no purpose has {' or '.join(f'`{word}`' for word in words)} in its name",
            where=Where(key="WORD"),
            hint="`dslm recipes list` lists all of them; any other model: `--model NAME`",
        )
    if json:
        rows: list[tuple[str, str | None, str]]
        rows = [(preset.name, preset.task, preset.description) for preset in found]
        rows += [(purpose.name, purpose.task, purpose.description) for purpose in aims]
        terminal.write_json(
            [
                {"name": name, "task": kind, "parameters": sizes.get(name), "description": text}
                for name, kind, text in rows
            ]
        )
        return
    from rich.table import Table

    found.sort(key=lambda preset: (preset.family, sizes.get(preset.name, 0), preset.name))
    terminal.show(_presets(found, sizes))
    if aims:
        table = Table("purpose", "description", box=None, header_style="bold")
        for purpose in aims:
            table.add_row(purpose.name, purpose.description)
        terminal.show(
            "\npurposes, one or several with any model: dslm train MODEL --with PURPOSE,…\n"
        )
        terminal.show(table)


def _presets(found: Sequence[Preset], sizes: Mapping[str, int]) -> Table:
    """Lay out presets, with an empty line between families."""
    from rich.table import Column, Table

    from dslm.units import render_count

    longest = max((len(preset.name) for preset in found), default=0)
    model = Column("model", no_wrap=True, min_width=longest)  # whole: it is typed again
    table = Table(model, "task", "parameters", "description", box=None, header_style="bold")
    table.columns[2].justify = "right"
    for number, preset in enumerate(found):
        if number and preset.family != found[number - 1].family:
            table.add_row()
        size = sizes.get(preset.name)
        shown = "-" if size is None else render_count(size)
        table.add_row(preset.name, preset.task, shown, preset.description)
    return table


@app.command("show", no_args_is_help=True)
def show(
    recipe: options.OptionalRecipe = None,
    model: options.Model = None,
    with_: options.With = None,
    set_: options.Set = None,
    json: options.Json = False,
) -> None:
    """Show a recipe as dslm reads it: with what it extends, every default and every override.

    With --json also what is known to work with its model (docs/matrix.md).

    [dim]Example:[/dim] dslm recipes show llama-3.2-1b --set batch.global_size=128
    """
    from dslm.recipe.load import dump_recipe, load_recipe

    loaded = load_recipe(*options.recipe_of(recipe, model, set_, with_))
    if json:
        from dslm.decide.matrix import known_of

        document = loaded.recipe.model_dump(mode="json")
        terminal.write_json({**document, "matrix": known_of(loaded)})
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
        str | None,
        typer.Option(
            "--from",
            metavar="PRESET",
            help="The preset that it extends; default: quickstart.",
            autocompletion=complete.presets,
        ),
    ] = None,
    model: options.Model = None,
    with_: options.With = None,
) -> None:
    """Write a recipe of your own that extends a preset and purposes.

    [dim]Example:[/dim] dslm recipes new mine.yaml --from llama-3.2-1b --with sft,lora

    A model without a preset: dslm recipes new mine.yaml --model org/model --with sft
    """
    from dslm.errors import OptionError, Where
    from dslm.files import write_atomic
    from dslm.recipe.catalog import new_recipe_text

    if preset is not None and model is not None:
        raise OptionError(
            f"`--from {preset}` and `--model {model}` both say which model",
            where=Where(key="--model"),
        )

    if path.name in ("", ".."):
        raise OptionError("names no file", where=Where(key="FILE"))
    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(path.name + ".yaml")
    if path.exists():
        raise OptionError("the file already exists", where=Where(file=path))
    text = new_recipe_text(preset or "quickstart", with_ or (), model, folder=path.parent)
    try:
        write_atomic(path, text)
    except OSError as failure:
        raise OptionError(
            f"can't write it: {failure.strerror}", where=Where(file=path)
        ) from failure
    terminal.say(f"wrote {path}; next: set `data.train` in it, then `dslm train {path}`")
