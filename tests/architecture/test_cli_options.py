"""The command line grows only on purpose: every argument and option stands in a frozen list.

A new one needs two users and a line in `cli_options.txt`: recipes carry the knobs, not flags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dslm.cli.app import app

FROZEN = Path(__file__).with_name("cli_options.txt")
MOST = 14  # arguments and options of one verb, `--json` and `--dry-run` included
MOST_OF_LAUNCHING = 22  # where and how often it runs is said on the command line, not in a recipe


def _options(command: Any, path: str) -> Iterator[str]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _options(below, f"{path} {name}")
    for parameter in command.params:
        is_option = parameter.opts[0].startswith("-")
        names = sorted(parameter.opts, key=len, reverse=True)
        yield f"{path} {' '.join(names) if is_option else parameter.name.upper()}"


def test_the_command_line_is_the_frozen_list() -> None:
    found = list(_options(typer.main.get_command(app), "dslm"))
    assert sorted(found) == sorted(FROZEN.read_text().splitlines())


def test_no_verb_has_too_many_options() -> None:
    lines = FROZEN.read_text().splitlines()
    counts = Counter(
        " ".join(w for w in line.split() if w.islower() and w[0] != "-") for line in lines
    )
    assert len(counts) > 12
    launching = ("dslm train", "dslm launch", "dslm tune", "dslm verify")
    most = dict.fromkeys(launching, MOST_OF_LAUNCHING)
    most["dslm train"] += 1  # only a training begins with another run's weights
    # a plan can be made of a recipe, of a model and of a number, for any cluster at any price
    most["dslm plan"] = MOST + 2
    assert {verb: n for verb, n in counts.items() if n > most.get(verb, MOST)} == {}
