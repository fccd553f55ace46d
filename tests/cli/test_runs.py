"""`dslm runs`: what ran is shown whatever lies in the folders, and a name is taken everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dslm.run.documents import FORMAT
from tests.conftest import Dslm

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder ./runs with a run that is done and one that was stopped."""
    for name in ("done", "stopped"):
        shutil.copytree(FROZEN / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_a_run_of_version_0_1_is_shown_with_dates_and_four_digits(warm: Dslm, runs: Path) -> None:
    done = warm("runs", "show", "stopped")
    assert done.returncode == 0, done.stderr
    for words in (
        "started     2026-11-25", "step        56 of 120", "loss        2.7158",
        "eval loss   2.8514", "3.4802 ⠉", "the process was killed from outside",
    ):  # fmt: skip
        assert words in done.stdout
    assert "17956" not in done.stdout


def test_a_run_that_is_not_done_is_shown_with_the_command_that_resumes_it(
    warm: Dslm, runs: Path
) -> None:
    shown = warm("runs", "show", "stopped").stdout
    again = "dslm train tiny.yaml -o /home/ada/runs/stopped --max-restarts 1 --resume"
    assert f"resume with: {again}\n" in shown
    assert "resume with" not in warm("runs", "show", "done").stdout
    manifest = runs / "stopped" / "manifest.json"
    launched = {**json.loads(manifest.read_text()), "command": ["dslm", "launch", "train"]}
    manifest.write_text(json.dumps(launched))
    assert "resume with" not in warm("runs", "show", "stopped").stdout


def test_a_name_that_is_listed_is_taken_by_every_verb(warm: Dslm, runs: Path) -> None:
    listed = warm("runs", "list").stdout
    assert "2026-11-25" in listed
    for name in ("done", "stopped"):
        assert name in listed
        for verb in (["show", name], ["show", name, "--json"], ["stop", name]):
            done = warm("runs", *verb)
            assert done.returncode == 0, done.stderr
    found = warm("export", "done", "--dtype", "fp7")
    assert "fp7" in found.stderr
    # a table cuts a long path
    elsewhere = json.loads(warm("runs", "list", str(runs.parent / "runs"), "--json").stdout)
    assert str(runs / "done") in [run["path"] for run in elsewhere]


def test_a_name_that_is_misspelt_has_a_hint(warm: Dslm, runs: Path) -> None:
    done = warm("runs", "show", "stoped")
    assert done.returncode == 2
    assert "did you mean `stopped`?" in done.stderr


def _torn(run: Path) -> None:
    events = run / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-20] + b'\n{"time": 1.0, "event": "st')


def _nul(run: Path) -> None:
    with (run / "events.jsonl").open("ab") as stream:
        stream.write(b"\0" * 4096 + b"\n")


def _nothings(run: Path) -> None:
    with (run / "events.jsonl").open("ab") as stream:
        stream.write(b'{}\n5\nnull\n"x"\n[]\n{"event": "step", "attempt": 1, "step": 9}\n')


def _manifest(run: Path) -> None:
    (run / "manifest.json").write_bytes(b"\x00\xff not JSON")


def _strangers(run: Path) -> None:
    for name in ("step-foo", "step-", "step-1x"):
        (run / "checkpoints" / name).mkdir(parents=True)


def _all(run: Path) -> None:
    for file in run.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff\x00garbage")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_torn, "events.jsonl: 1 line can't be read"),
    (_nul, "events.jsonl: 1 line can't be read"),
    (_nothings, "events.jsonl: 6 lines can't be read"),
    (_manifest, "manifest.json: the manifest of the run is damaged"),
    (_strangers, ""),
    (_all, "manifest.json"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_no_damage_breaks_a_verb(
    warm: Dslm, runs: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(runs / "stopped")
    done = warm("runs", "list")
    assert done.returncode == 0, done.stderr
    assert "2.4220" in done.stdout  # the other run
    assert said in done.stderr
    for verb in (["show"], ["stop"]):
        done = warm("runs", *verb, "stopped")
        assert done.returncode == 0, done.stderr
        assert "itself failed" not in done.stderr
    shown = warm("runs", "show", "stopped")
    assert said in shown.stdout
    document = json.loads(warm("runs", "show", "stopped", "--json").stdout)
    assert bool(document["problems"]) == bool(said)
    if damage is not _all:
        assert document["step"] == (55 if damage is _torn else 56)


@pytest.mark.parametrize(
    "argv", [["runs", "show"], ["runs", "stop"], ["runs", "watch"], ["export"]], ids=" ".join
)
def test_a_run_of_a_later_format_is_refused_by_name_and_version(
    warm: Dslm, runs: Path, argv: list[str]
) -> None:
    manifest = runs / "done" / "manifest.json"
    later = {"format": FORMAT + 1, "versions": {"dslm": "3.1.4"}, "renamed": True}
    manifest.write_text(json.dumps(later))
    done: subprocess.CompletedProcess[str] = warm(*argv, str(runs / "done"))
    assert done.returncode == 2
    assert f"by dslm 3.1.4, in format {FORMAT + 1}" in done.stderr
    assert "manifest.json" in done.stderr
    assert warm("runs", "list").returncode == 0


def test_nobody_is_asked_to_stop_where_nobody_trains(warm: Dslm, runs: Path) -> None:
    events = runs / "stopped" / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(line for line in lines if '"end"' not in line))
    done = warm("runs", "stop", "stopped")
    assert done.returncode == 0
    assert "no process trains in stopped" in done.stderr
    assert not (runs / "stopped" / "stop-requested").exists()
