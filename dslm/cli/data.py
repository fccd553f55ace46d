"""`dslm data`: prepare the data of a recipe before training, and look at it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import typer

from dslm.cli import options, terminal
from dslm.errors import DataError, Where

app = typer.Typer(
    help="Prepare and show the data of a recipe.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Shards = Annotated[
    int | None, typer.Option("--shards", min=1, metavar="K", help="Files to write; default: 1.")
]
ShardBy = Annotated[
    str | None,
    typer.Option(
        "--shard-by",
        metavar="range|hash",
        help="Assign documents to files as contiguous pieces, or by a stable hash.",
    ),
]
Prepared: TypeAlias = dict[str, Any]  # what the worker says of prepared data
SampleCount = Annotated[int, typer.Option("--samples", min=0, help="Number of samples to show.")]


@app.command("prepare", no_args_is_help=True)
def prepare(
    recipe: options.OptionalRecipe = None,
    model: options.Model = None,
    with_: options.With = None,
    set_: options.Set = None,
    shards: Shards = None,
    shard_by: ShardBy = None,
    json: options.Json = False,
) -> None:
    """Tokenise, pack and write the data of a recipe; training with the same recipe finds it.

    Prepared data is checked against its checksums. An interrupted preparation continues where it
    was.

    [dim]Examples:[/dim]

        dslm data prepare llama-3.2-1b --set data.train=corpus/

        dslm data prepare mine.yaml --shards 8 --shard-by hash
    """
    name, given = options.recipe_of(recipe, model, set_, with_)
    if shards is not None:
        given.append(f"data.shards={shards}")
    if shard_by is not None:
        given.append(f"data.shard_by={shard_by}")
    found = _ask(name, given, samples=0, verify=True)
    if found["damaged"]:
        raise DataError(
            f"prepared files are damaged: {', '.join(found['damaged'])}",
            where=Where(file=found["folder"]),
            hint="delete the folder: it is prepared again",
        )
    if json:
        terminal.write_json({name: value for name, value in found.items() if name != "shown"})
    else:
        _say_statistics(found)


@app.command("show", no_args_is_help=True)
def show(
    recipe: options.OptionalRecipe = None,
    model: options.Model = None,
    with_: options.With = None,
    set_: options.Set = None,
    samples: SampleCount = 3,
    json: options.Json = False,
) -> None:
    """Show statistics of a recipe's data, and a few samples with the learnt part marked.

    Green, bold text is learnt, dim text is only read; in a file or a pipe, learnt text is between
    ⟦ and ⟧.

    [dim]Example:[/dim] dslm data show quickstart-sft --samples 1
    """
    name, given = options.recipe_of(recipe, model, set_, with_)
    found = _ask(name, given, samples=samples, verify=False)
    if json:
        terminal.write_json(found)
        return
    from rich.panel import Panel
    from rich.text import Text

    _say_statistics(found)
    styled = sys.stdout.isatty()
    for number, segments in enumerate(found["shown"], 1):
        text, document = Text(), 0
        for segment in segments:
            if segment.get("document", 0) != document:
                document = segment["document"]
                text.append("\n─── next document ───\n", style="cyan")
            if "column" in segment:
                text.append(f"{segment['column']}: ", style="cyan")
            shown = segment["text"]
            if segment["learnt"] and not styled:
                shown = f"⟦{shown}⟧"
            text.append(shown, style="bold green" if segment["learnt"] else "dim")
            if "column" in segment:
                text.append("\n")
        terminal.show(Panel(text, title=f"sample {number}"))


def _ask(recipe: str, overrides: Sequence[str], *, samples: int, verify: bool) -> Prepared:
    from dslm.ask.call import ask
    from dslm.decide.job import check_data_named
    from dslm.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides).recipe
    check_data_named(loaded)
    request = {
        "recipe": loaded.model_dump(mode="json"), "samples": samples, "verify": verify,
    }  # fmt: skip
    with terminal.busy() as tell:
        return ask("dslm.worker.data.show", request, tell)


def _say_statistics(found: Prepared) -> None:
    from rich.table import Table

    from dslm.units import render_count

    table = Table(
        "", "documents", "duplicates", "samples", "tokens", "files", "filled",
        box=None, header_style="bold",
    )  # fmt: skip
    for name in ("train", "eval"):
        part = found[name]
        filled = part.get("efficiency")
        table.add_row(
            name,
            *(render_count(part[n]) for n in ("documents", "duplicates", "samples", "tokens")),
            str(len(part["shards"])),
            f"{filled:.2%}" if filled is not None else "-",
        )
    terminal.show(table)
    if found["formats"]:
        terminal.say(_said_formats(found))
    if found["labels"]:
        terminal.say(f"labels: {', '.join(found['labels'])}")
    if found["bad_records"]:
        bad = f"[yellow]bad records left out: {found['bad_records']}[/], such as:"
        terminal.say(terminal.styled(bad))
        for example in found["examples"]:
            terminal.people().print(f"  {example}", markup=False, soft_wrap=True)
    terminal.say(f"prepared data: {found['folder']}")


def _said_formats(found: Prepared) -> str:
    """What was recognised, such as `1,204 records: ShareGPT, 3 with tools`."""
    from dslm.recipe.formats import BY_NAME

    counts = found["formats"]
    several = len(counts) > 1
    parts = [f"{n:,} {BY_NAME[name].said}" if several else BY_NAME[name].said
             for name, n in counts.items()]  # fmt: skip
    parts += [f"{found['with_tools']:,} with tools"] if found["with_tools"] else []
    parts += [f"{found['cut']:,} cut to fit"] if found["cut"] else []
    total = sum(counts.values())
    return f"{total:,} record{'' if total == 1 else 's'}: {', '.join(parts)}"
