"""`dslm chat`: talk to a trained model in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dslm.cli import terminal
from dslm.cli.answering import (
    Against,
    MaxTokens,
    Seed,
    Settings,
    Step,
    System,
    Target,
    Temperature,
    TopP,
    opened,
    settings_of,
    shown,
)

if TYPE_CHECKING:
    from dslm.ask.session import Session
    from dslm.run.answers import Piece

_HELP = """\
/reset         forget what was said
/system TEXT   say how it should behave, and begin anew
/save FILE     append the chat to a file of chats to train on (jsonl)
/exit          leave; so do Ctrl-D and Ctrl-C twice; Ctrl-C ends an answer"""


def chat(
    model: Target,
    system: System = None,
    checkpoint: Step = None,
    against: Against = None,
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = 0,
) -> None:
    """Talk to a trained model: answers appear as they are made.

    `/help` shows what else there is: `/reset`, `/system`, `/save`.

    [dim]Examples:[/dim]

        dslm chat runs/mine

        dslm chat runs/mine --against base --system "Answer briefly."
    """
    from dslm.errors import OptionError, Where

    settings = settings_of(max_tokens, temperature, top_p, seed)
    with opened(model, checkpoint, against) as made:
        if not made.chats:
            raise OptionError(
                f"`{model}` has no chat template: it can't chat",
                where=Where(key="MODEL"),
                hint=f"`dslm generate {model} --prompt TEXT` continues a text",
            )
        terminal.say(f"{model} on {made.device}; /help shows the commands, Ctrl-D leaves")
        names = ("answer", made.other) if made.other is not None else ("answer",)
        _Chat(made.session, settings, names, system).talk()


class _Chat:
    """What was said so far; with two models, by and to each."""

    def __init__(
        self, session: Session, settings: Settings, names: tuple[str, ...], system: str | None
    ) -> None:
        self._session = session
        self._settings = settings
        self._names = names
        self._system = system
        self._said: list[dict[str, str]] = []
        self._shown = -1  # which model's answer stands on the last line

    def talk(self) -> None:
        """Read lines and answer them until there are none."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - earlier lines come back with the arrow keys
        asks = sys.stdin.isatty()
        leaving = False
        while True:
            try:
                line = input("\n> " if asks else "").strip()
            except EOFError:
                terminal.say()
                return
            except KeyboardInterrupt:
                if leaving:
                    terminal.say()
                    raise
                leaving = True
                terminal.say("  Ctrl-C once more, /exit or Ctrl-D leaves")
                continue
            leaving = False
            if line == "/exit":
                return
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            elif line:
                self._answer(line)

    def _messages(self) -> list[dict[str, str]]:
        begin = [{"role": "system", "content": self._system}] if self._system else []
        return [*begin, *self._said]

    def _answer(self, line: str) -> None:
        from dslm.errors import InputError

        self._said.append({"role": "user", "content": line})
        self._shown = -1
        request = {**self._settings, "prompts": [self._messages()], "raw": False, "stream": True}
        try:
            pair = self._session.ask(request, on_piece=self._piece)["answers"][0]
        except InputError as failure:  # such as a template that has no system message
            self._said.pop()
            terminal.say("; ".join(filter(None, (failure.message, failure.hint))))
            return
        terminal.write("")
        # what the first model said is what both go on from
        self._said.append({"role": "assistant", "content": pair[0]["text"]})

    def _piece(self, piece: Piece) -> None:
        if len(self._names) > 1 and piece.of != self._shown:
            sys.stdout.write(f"{chr(10) if self._shown >= 0 else ''}[{self._names[piece.of]}] ")
            self._shown = piece.of
        sys.stdout.write(shown(piece.text))
        sys.stdout.flush()

    def _command(self, name: str, rest: str) -> None:
        match name:
            case "/reset":
                self._said.clear()
                terminal.say("forgotten")
            case "/system":
                self._system = rest.strip() or None
                self._said.clear()
                terminal.say("begun anew")
            case "/save":
                self._save(rest.strip())
            case "/help":
                terminal.say(_HELP)
            case _:
                terminal.say(f"there is no {name}\n\n{_HELP}")

    def _save(self, name: str) -> None:
        if not name or not self._said:
            terminal.say("/save FILE, once something was said" if not name else "nothing was said")
            return
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"messages": self._messages()}, ensure_ascii=False) + "\n")
        except OSError as failure:
            terminal.say(f"can't be written: {failure.strerror}")
            return
        terminal.say(f"appended to {name}: `--set data.train={name}` trains on it")
