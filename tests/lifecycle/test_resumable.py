"""Which run `--resume` finds, what may differ then, and the command that is shown."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dslm.errors import OptionError
from dslm.lifecycle.fleet import fleet_of
from dslm.lifecycle.placement import Placement
from dslm.lifecycle.request import TrainingRequest
from dslm.lifecycle.resumable import (
    MAY_DIFFER,
    check_resumable,
    recipe_difference,
    resume_command,
    run_to_resume,
)
from dslm.recipe.findings import known_keys
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe
from dslm.run.directory import RunDirectory

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/` with a stopped run and, newer, one that is done, both of the recipe `tiny`."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("stopped", "done")):
        shutil.copytree(FROZEN / name, tmp_path / "runs" / name)
        manifest = tmp_path / "runs" / name / "manifest.json"
        os.utime(manifest, (1e9 + number, 1e9 + number))
    shutil.copy(FROZEN / "tiny.yaml", tmp_path)
    shutil.copy(FROZEN / "items.jsonl", tmp_path)
    return tmp_path / "runs"


def asked(*, output: Path | None = None, resume: bool = True) -> TrainingRequest:
    return TrainingRequest(
        recipe=load_recipe("tiny.yaml"),
        fleet=fleet_of(Placement(num_gpus=2)),
        output=output,
        resume=resume,
    )


def test_resume_finds_the_newest_unfinished_run_of_the_recipe(runs: Path) -> None:
    found = run_to_resume(asked())
    assert found is not None
    assert found.path == runs / "stopped"
    assert run_to_resume(asked(resume=False)) is None
    (runs / "stopped" / "manifest.json").write_text("not JSON")  # damaged: passed over
    with pytest.raises(OptionError, match="no unfinished run of `tiny`"):
        run_to_resume(asked())


def test_a_run_that_is_done_is_resumed_only_to_make_it_longer(runs: Path) -> None:
    run = run_to_resume(asked(output=runs / "done"))
    assert run is not None
    recipe = changed({})
    with pytest.raises(OptionError, match="done"):
        check_resumable(run, recipe, recipe)
    (note,) = check_resumable(run, recipe, changed({"duration": {"steps": 2000}}))
    assert "made longer" in note


def changed(tree: dict[str, object]) -> Recipe:
    return load_recipe("quickstart").recipe.model_validate(
        {**load_recipe("quickstart").recipe.model_dump(mode="json"), **tree}
    )


LONGER = [
    ("cosine", "the learning rate is that of the longer schedule from here on"),
    ("constant", "stays as it is"),
]


@pytest.mark.parametrize(("schedule", "said"), LONGER)
def test_a_longer_duration_says_what_it_does_to_the_schedule(
    tmp_path: Path, schedule: str, said: str
) -> None:
    old = changed({"duration": {"steps": 10}, "schedule": {"name": schedule}})
    new = changed({"duration": {"steps": 20}, "schedule": {"name": schedule}})
    (note,) = check_resumable(RunDirectory(tmp_path), old, new)
    assert "from duration.steps=10 to 20" in note
    assert said in note


@pytest.mark.parametrize("duration", [{"steps": 5}, {"tokens": 10**9}, {"epochs": 100}])
def test_a_duration_that_is_shorter_or_of_another_unit_is_refused(
    tmp_path: Path, duration: dict[str, int]
) -> None:
    old = changed({"duration": {"steps": 10}})
    with pytest.raises(OptionError, match="only be made longer"):
        check_resumable(RunDirectory(tmp_path), old, changed({"duration": duration}))


REFUSED = {"seed": 7, "precision": "bf16", "optimizer": {"lr": 0.5}, "data": {"packing": False}}
HARMLESS = {
    "log": {"every": 7},
    "checkpoint": {"every": 3, "keep": 5},
    "evaluation": {"every": 9},
    "watchdog": {"timeout": 77},
    "environment": {"MINE": "1"},
    "description": "mine",
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_of_the_mathematics_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(OptionError, match=f"`{key}"):
        check_resumable(RunDirectory(tmp_path), changed({}), changed({key: REFUSED[key]}))


@pytest.mark.parametrize("key", HARMLESS)
def test_a_harmless_key_may_differ(tmp_path: Path, key: str) -> None:
    assert check_resumable(RunDirectory(tmp_path), changed({}), changed({key: HARMLESS[key]})) == []


def test_a_file_may_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    old = load_recipe("quickstart", ["data.train=[{path: a.txt}]"]).recipe
    whole = load_recipe("quickstart", [f"data.train=[{{path: {tmp_path}/a.txt}}]"]).recipe
    assert recipe_difference(old, whole) == []
    other = load_recipe("quickstart", [f"data.train=[{{path: {tmp_path}/b.txt}}]"]).recipe
    assert [key for key, *_ in recipe_difference(old, other)] == ["data.train"]


def test_what_may_differ_are_keys_of_a_recipe_and_on_the_page() -> None:
    assert set(MAY_DIFFER) <= set(known_keys())
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert [key for key in MAY_DIFFER if f"`{key}`" not in page] == []


COMMANDS = [
    (["dslm", "train", "r.yaml"], "dslm train r.yaml -o runs/r --resume"),
    (
        ["/bin/dslm", "train", "a b.yaml", "-o", "runs/r"],
        "dslm train 'a b.yaml' -o runs/r --resume",
    ),
    (
        ["dslm", "train", "r", "--output=runs/r", "--resume"],
        "dslm train r --output=runs/r --resume",
    ),
]


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_the_command_that_resumes_is_the_one_that_started(command: list[str], shown: str) -> None:
    assert resume_command(command, Path("runs/r")) == shown
