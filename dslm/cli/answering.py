"""What the verbs about trained models have in common: their options, and a process that answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dslm.cli import complete, terminal

if TYPE_CHECKING:
    from dslm.ask.session import Session

Settings: TypeAlias = dict[str, int | float | None]

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, a checkpoint's folder, a model folder or a Hub name.",
        autocompletion=complete.runs,
    ),
]
Step = Annotated[
    int | None,
    typer.Option(
        "--checkpoint", metavar="N", help="The run's checkpoint of step N; default: its model."
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="MODEL", help="Show another model's beside it; `base`: its own base."
    ),
]
System = Annotated[str | None, typer.Option("--system", help="System message of the chat.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0, help="0: always the likeliest token; default: its own."),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", min=0, max=1, help="Sample from the likeliest tokens of this share."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Fixes what is sampled.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A process that has loaded a model, and perhaps another (`other`) that answers beside it."""

    session: Session
    other: str | None
    chats: bool  # whether there is a chat template
    device: str


@contextmanager
def opened(target: str, checkpoint: int | None, against: str | None) -> Iterator[Opened]:
    """Load a model, and the one that it is compared with, until the block ends.

    Raises:
        OptionError: there is no such model or checkpoint.
    """
    from dslm.ask import models
    from dslm.ask.session import Session

    with terminal.busy() as tell:
        first = models.meant(target, checkpoint, tell)
        other = models.against(first, against, tell) if against is not None else None
        session = Session("dslm.worker.generate")
    with session:
        with terminal.busy() as tell:
            request = {"model": first.name, "against": other, "trusted": first.trusted}
            made = session.ask(request, tell)
        yield Opened(
            session=session, other=other, chats=bool(made["chats"]), device=str(made["device"])
        )


def shown(text: str) -> str:
    """Return what a model said as stdout gets it: a terminal obeys none of it."""
    from dslm.cli.screens.answers import harmless

    return harmless(text) if sys.stdout.isatty() else text


def settings_of(
    max_tokens: int, temperature: float | None, top_p: float | None, seed: int
) -> Settings:
    """Return how is generated."""
    return {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
