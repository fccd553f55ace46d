"""`dslm generate`: answers of a trained model, to one prompt or a file of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NotRequired, TypeAlias, TypedDict

import typer

from dslm.cli import options, terminal
from dslm.cli.answering import (
    Against,
    MaxTokens,
    Seed,
    Step,
    System,
    Target,
    Temperature,
    TopP,
    opened,
    settings_of,
    shown,
)
from dslm.units import number_of

if TYPE_CHECKING:
    from dslm.ask.session import Session
    from dslm.recipe.chats import Messages
    from dslm.run.answers import Piece

Prompt: TypeAlias = "str | Messages"
Pair: TypeAlias = list[dict[str, object]]  # the answers to one prompt, of each model
_TOGETHER = 8  # prompts answered in one batch


class Row(TypedDict):
    """An answer as it is written; `against` is the other model's."""

    prompt: Prompt
    answer: str
    complete: bool
    against: NotRequired[str]


def generate(
    model: Target,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to answer; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Prompts: lines of text, or JSON lines."),
    ] = None,
    system: System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")
    ] = False,
    checkpoint: Step = None,
    against: Against = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write answers as JSON lines, as they are made."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Let a trained model answer, on whatever device there is.

    [dim]Examples:[/dim]

        dslm generate runs/mine --prompt "What is ZeRO?"

        dslm generate runs/mine --prompt "What is ZeRO?" --against base

        dslm generate runs/mine --file prompts.jsonl -o answers.jsonl
    """
    from dslm.errors import OptionError, Where
    from dslm.files import unwritable

    if not prompt and file is None:
        raise OptionError("give `--prompt TEXT`, or `--file FILE`")
    if raw and system is not None:
        raise OptionError("there is no system message in a raw text", where=Where(key="--system"))
    if output is not None and (why := unwritable(output)) is not None:
        raise OptionError(why, where=Where(file=output))  # not once all is answered
    if output is not None and output.exists():
        raise OptionError(
            "already exists", where=Where(file=output), hint="choose another with `-o FILE`"
        )
    asked: list[Prompt] = [*(prompt or ()), *(_read(file) if file is not None else ())]
    request = {**settings_of(max_tokens, temperature, top_p, seed), "raw": raw}
    with opened(model, checkpoint, against) as made:
        prompts = as_chats(asked, system, chats=made.chats and not raw)
        if len(prompts) == 1 and made.other is None and output is None and not json:
            _stream(made.session, request, prompts)
            return
        pairs = _answers(made.session, request, seed, prompts)
        rows = (_row(question, pair) for question, pair in zip(asked, pairs, strict=True))
        if output is not None:
            _keep(output, rows, len(asked))
        elif json:
            terminal.write_json(list(rows))
        else:
            for row in rows:
                _show(row, model, made.other)


def _row(question: Prompt, pair: Pair) -> Row:
    first = pair[0]
    row: Row = {
        "prompt": question, "answer": str(first["text"]), "complete": bool(first["complete"]),
    }  # fmt: skip
    return {**row, "against": str(pair[1]["text"])} if len(pair) > 1 else row


def as_chats(asked: list[Prompt], system: str | None, *, chats: bool) -> list[Prompt]:
    """Return prompts as the model reads them: chats where it has a template, texts where not.

    Raises:
        OptionError: a chat or a system message for a model that has no chat template.
    """
    from dslm.errors import OptionError, Where

    if not chats:
        if system is not None or any(not isinstance(one, str) for one in asked):
            raise OptionError(
                "the model has no chat template: it continues texts",
                where=Where(key="--system" if system is not None else "--file"),
            )
        return asked
    before = [{"role": "system", "content": system}] if system is not None else []
    return [
        [*before, {"role": "user", "content": one}] if isinstance(one, str) else [*before, *one]
        for one in asked
    ]


def _stream(session: Session, request: Mapping[str, object], prompts: list[Prompt]) -> None:
    """Show an answer while it is made."""

    def show(piece: Piece) -> None:
        sys.stdout.write(shown(piece.text))
        sys.stdout.flush()

    session.ask({**request, "prompts": prompts, "stream": True}, on_piece=show)
    terminal.write("")
    if session.interrupted:
        raise KeyboardInterrupt


def _answers(
    session: Session, request: Mapping[str, object], seed: int, prompts: list[Prompt]
) -> Iterator[Pair]:
    """The answers to all prompts in order, as soon as a batch of them is made."""
    whole = number_of(len(prompts), "prompt")
    for start in range(0, len(prompts), _TOGETHER):
        part = {"prompts": prompts[start : start + _TOGETHER], "seed": seed + start}
        with terminal.busy() as tell:
            tell(f"answering {whole}" + (f", {start} of them so far" if start else ""))
            found = session.ask({**request, **part, "stream": False}, tell)["answers"]
        if session.interrupted:  # what there is of this batch was cut off
            raise KeyboardInterrupt
        yield from found


def _keep(output: Path, rows: Iterator[Row], count: int) -> None:
    """Write answers as they are made; those that were stay, whatever ends it, and that is said."""
    from dslm.files import append_whole, json_text

    written = 0
    try:
        for row in rows:
            append_whole(output, json_text(row, indent=None))
            written += 1
    finally:
        if written:
            some = "" if written == count else f"{written} of "
            place = terminal.shown_path(output)
            terminal.say(f"wrote {some}{number_of(count, 'answer')} to {place}")


def _read(file: Path) -> list[Prompt]:
    """The prompts of a file: each line's text, or what a JSON line asks.

    Raises:
        DataError: a line is no prompt.
    """
    import json

    from dslm.errors import DataError, Where
    from dslm.reading import read_text
    from dslm.recipe.formats import formed

    lines = read_text(file, error=DataError).splitlines()
    found: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            found.append(line)
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as failure:
            raise DataError(
                f"is not JSON: {failure}", where=Where(file=file, line=number)
            ) from None
        what = "is no JSON object"
        values = formed(record, "prompts")[1] if isinstance(record, dict) else what
        if isinstance(values, str):
            raise DataError(values, where=Where(file=file, line=number))
        found.append(values["prompt"])
    if not found:
        raise DataError("holds no prompt", where=Where(file=file))
    return found


def _show(row: Row, name: str, other: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    prompt = row["prompt"]
    said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if other is None:
        terminal.show(Text.assemble((f"{said}\n", "cyan"), f"{shown(row['answer'])}\n"))
        return
    table = Table(name, other, title=Text(said, style="cyan"), expand=True)
    table.add_row(Text(shown(row["answer"])), Text(shown(row["against"])))
    terminal.show(table)
