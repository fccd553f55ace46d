"""Whole screens are what they were: exit code, stdout and stderr at 80 and at 120 columns.

`pytest tests/cli/test_screens.py --update-golden` writes the files; read them before you commit.
Blanks at the end of a line are no part of a screen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dslm.cli import hosts, terminal
from dslm.cli.screens.dry_run import show_dry_run
from dslm.cli.screens.ending import show_end
from dslm.cli.screens.plan import plan_page
from dslm.errors import DslmError
from dslm.launch.outcome import Outcome, Status
from dslm.lifecycle.request import Ended, Preview
from dslm.run.directory import RunDirectory
from tests.cli import screen_values as values
from tests.conftest import DSLM

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "screens"
WIDTHS = (80, 120)
Compare = Callable[[str, int, str, str], None]
# Nothing of the caller's environment changes how wide, coloured or dated a screen is.
VARIABLES = {"NO_COLOR": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
COMMANDS = {
    "help": ("--help",),
    "recipes-list": ("recipes", "list"),
    "runs-list": ("runs", "list"),
    "runs-show": ("runs", "show", "stopped"),
}


@pytest.fixture
def compare(request: pytest.FixtureRequest, width: int) -> Compare:
    """Compare a screen with its golden file, or write that on request."""

    def check(name: str, code: int, stdout: str, stderr: str) -> None:
        lines = [f"--- exit {code}"]
        for stream, text in (("stdout", stdout), ("stderr", stderr)):
            lines += [f"--- {stream}", *(line.rstrip() for line in text.splitlines())]
        screen = "\n".join(lines) + "\n"
        assert not re.search(r"\w…", screen), "a word is cut, and can't be copied"
        file = GOLDEN / f"{name}-{width}.txt"
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(screen)
        assert screen == file.read_text()

    return check


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with the frozen runs below `runs/`."""
    for name in ("done", "stopped"):
        shutil.copytree(TESTS / "data" / "run-0.1" / name, tmp_path / "runs" / name)
    long = "llama-3.1-8b-instruct-20261125-184110"
    shutil.copytree(TESTS / "data" / "run-0.1" / "stopped", tmp_path / "runs" / long)
    return tmp_path


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_shows(name: str, width: int, runs: Path, compare: Compare) -> None:
    done = subprocess.run(
        [str(DSLM), *COMMANDS[name]],
        cwd=runs,
        env={**VARIABLES, "PATH": os.environ["PATH"], "HOME": str(runs), "COLUMNS": str(width)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    compare(name, done.returncode, done.stdout, done.stderr)


def draw_plan() -> None:
    for part in plan_page(values.PLAN):
        terminal.show(part)


def draw_dry_run() -> None:
    remarks = ("the Hub can't be reached: only earlier downloads can be used",)
    preview = Preview(
        request=values.REQUEST, attempt=values.ATTEMPT, job=values.job(), remarks=remarks
    )
    show_dry_run(values.FLEET, preview, json=False)


def draw_hosts_check() -> None:
    hosts.check("w1:8,w2:8,worker-3.example.org:8")


def draw_end() -> None:
    run = RunDirectory(Path("runs/done").absolute())
    lines = run.events.read_text().splitlines()
    end = {**json.loads(lines[-1]), "sample": "Once upon a time there was a [small] loss."}
    run.events.write_text("\n".join([*lines[:-1], json.dumps(end)]) + "\n")
    show_end(Ended(run=run, outcome=Outcome(status=Status.DONE, attempt=1)), json=False)


def draw_failure() -> None:
    run = RunDirectory(Path("runs/stopped").absolute())
    with run.events.open("a") as stream:
        stream.write(json.dumps(values.FAILURE) + "\n")
    outcome = Outcome(status=Status.FAILED, attempt=2, failed_rank=3)
    again = "dslm train mine.yaml -o runs/stopped --resume"
    show_end(Ended(run=run, outcome=outcome, resume=again), json=False)


SCREENS: dict[str, Callable[[], None]] = {
    "plan": draw_plan,
    "dry-run": draw_dry_run,
    "hosts-check": draw_hosts_check,
    "end": draw_end,
    "failure": draw_failure,
}


@pytest.fixture
def drawing(runs: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw in a folder with runs, on a terminal of this width, with hosts that answer at once."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**VARIABLES, "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("dslm.reach.preflight.preflight", lambda *_: values.PREFLIGHT)
    monkeypatch.chdir(runs)
    terminal.people.cache_clear()
    yield
    terminal.people.cache_clear()


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_what_values_look_like(
    name: str, capsys: pytest.CaptureFixture[str], compare: Compare
) -> None:
    code = 0
    try:
        SCREENS[name]()
    except DslmError as failure:
        terminal.error(failure)
        code = failure.exit_code
    shown = capsys.readouterr()
    compare(name, code, shown.out, shown.err)


def test_every_golden_file_is_of_a_screen() -> None:
    names = {f"{name}-{width}.txt" for name in (*COMMANDS, *SCREENS) for width in WIDTHS}
    assert {file.name for file in GOLDEN.iterdir()} == names
