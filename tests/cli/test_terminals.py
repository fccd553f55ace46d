"""Verbs on odd terminals: no internal error, and no letter that can't be shown.

Each verb meets three kinds of terminals, one of which can't be written to, and each kind a third of
the verbs: what is written goes through the same few functions, whichever verb writes it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from dslm.cli import streams
from dslm.cli.app import app
from tests.conftest import DSLM

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "tests" / "data" / "run-0.1"
VERBS = {
    "--version": "--version",
    "--help": "--help",
    "train": "train quickstart --dry-run",
    "verify": "verify nothing…é",
    "plan": "plan quickstart",
    "tune": "tune nothing…é",
    "config": "config quickstart --explain",
    "recipes list": "recipes list",
    "recipes show": "recipes show quickstart",
    "recipes schema": "recipes schema",
    "recipes new": "recipes new mine.yaml --from quickstart",
    "hosts check": "hosts check w1:4,w1:4",
    "hosts show": f"hosts show {ROOT / 'hostfiles'}/none",
    "data prepare": "data prepare mine…é.yaml",
    "data show": "data show mine…é.yaml",
    "runs list": f"runs list {RUNS}",
    "runs show": f"runs show {RUNS / 'done'}",
    "runs watch": f"runs watch {RUNS / 'done'}",
    "runs stop": f"runs stop {RUNS / 'done'}",
    "generate": "generate nothing…é --prompt é",
    "chat": "chat nothing…é",
    "evaluate": "evaluate nothing…é",
    "doctor": "doctor",
    "export": "export nothing…é",
    "launch": "launch nothing…é.py",
}
Run = Callable[[list[str], Path, dict[str, str]], subprocess.CompletedProcess[bytes]]


def _to(redirection: str) -> Run:
    """Run dslm with its streams as a shell redirects them."""

    def run(
        argv: list[str], folder: Path, variables: dict[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["bash", "-c", f'"$@" {redirection}', "bash", *argv],
            cwd=folder,
            env=variables,
            capture_output=True,
            timeout=120,
        )

    return run


def _with(**settings: str | None) -> Run:
    """Run dslm with variables set, or removed."""

    def run(
        argv: list[str], folder: Path, variables: dict[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        kept = {**variables, **settings}
        chosen = {name: value for name, value in kept.items() if value is not None}
        return subprocess.run(argv, cwd=folder, env=chosen, capture_output=True, timeout=120)

    return run


def _in_no_folder(
    argv: list[str], folder: Path, variables: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    script = 'mkdir gone && cd gone && rmdir "$PWD" && "$@"'
    return subprocess.run(
        ["bash", "-c", script, "bash", *argv],
        cwd=folder, env=variables, capture_output=True, timeout=120,
    )  # fmt: skip


TERMINALS: dict[str, Run] = {
    "stdout closed": _to(">&-"),
    "all closed": _to("<&- >&- 2>&-"),
    "stdout full": _to("> /dev/full"),
    "stderr full": _to("2> /dev/full"),
    "a reader that goes": _to("| head -c 1 > /dev/null"),
    "ASCII, no columns": _with(LC_ALL="POSIX", COLUMNS="0", LINES="-1"),
    "Latin-1": _with(PYTHONIOENCODING="latin-1", COLUMNS="1"),
    "no home": _with(HOME=None, XDG_CACHE_HOME=None),
    "a folder that was removed": _in_no_folder,
}
_KINDS = len(TERMINALS) // 3  # so that a verb meets three


def test_the_table_has_every_verb() -> None:
    command: Any = typer.main.get_command(app)
    found: set[str] = set()
    for name, below in command.commands.items():
        inside = getattr(below, "commands", None)
        found |= {f"{name} {verb}" for verb in inside} if inside else {name}
    assert found == {verb for verb in VERBS if not verb.startswith("-")}
    met = [verb for terminal in TERMINALS for verb in _met(terminal)]
    assert {verb: met.count(verb) for verb in VERBS} == dict.fromkeys(VERBS, 3)


def _met(terminal: str) -> list[str]:
    """The verbs that meet a kind of terminal."""
    turn = [*TERMINALS].index(terminal) % _KINDS
    return [verb for number, verb in enumerate(VERBS) if number % _KINDS == turn]


@pytest.mark.parametrize("terminal", TERMINALS)
def test_no_verb_fails_of_its_terminal(terminal: str, tmp_path: Path) -> None:
    variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}

    def run(verb: str) -> tuple[str, subprocess.CompletedProcess[bytes]]:
        folder = tmp_path / verb.replace(" ", "-")
        folder.mkdir()
        return verb, TERMINALS[terminal]([str(DSLM), *VERBS[verb].split()], folder, variables)

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(run, _met(terminal)))
    assert len(results) >= len(VERBS) // _KINDS
    for verb, done in results:
        said = done.stdout + done.stderr
        for words in (b"dslm itself failed", b"Traceback", b"Exception ignored", b"UnicodeE"):
            assert words not in said, (verb, said)
        assert done.returncode in (0, 1, 2, 3, 4), (verb, done.returncode, said)
        if "ASCII" in terminal:
            assert said.isascii(), (verb, said)
        if terminal == "Latin-1":
            said.decode("latin-1")
            assert b"\xe2\x80" not in said, (verb, "UTF-8 on a Latin-1 terminal")
        if terminal == "stdout full" and verb in ("plan", "recipes list", "--version"):
            assert done.returncode == 1, verb
            assert b"No space left on device" in done.stderr, (verb, said)
        if terminal == "stdout closed" and verb in ("plan", "recipes list", "--version"):
            assert done.returncode == 1, verb
            assert b"stdout is closed" in done.stderr, (verb, said)
        if terminal == "a folder that was removed" and verb == "train":
            assert b"the current folder was removed" in done.stderr, (verb, said)


def test_json_on_an_ascii_terminal_is_escaped(tmp_path: Path) -> None:
    import json

    (tmp_path / "mé.yaml").write_text("extends: quickstart\ndescription: größer … 🙂\n")
    argv = [str(DSLM), "train", "mé.yaml", "--dry-run", "--json"]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, cwd=tmp_path, env=variables, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["recipe"]["description"] == "größer … 🙂"


def test_letters_that_an_encoding_lacks_have_a_likeness() -> None:
    import codecs

    codecs.register_error("dslm-plain", streams._plain)
    text = "a · b × c … ─┼━ █ ⣿ → é"
    assert text.encode("ascii", "dslm-plain") == b"a - b x c ... -+- # . -> \\xe9"
    assert "é ×".encode("latin-1", "dslm-plain") == b"\xe9 \xd7"
