"""What can't run is refused before anything starts, by every verb in the same words."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from dslm.cli.app import app
from dslm.cluster.detect import local_cluster
from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import CHECKS, Asking
from dslm.decide.checks.model import HEADS
from dslm.decide.ready import ready_job
from dslm.errors import DslmError
from dslm.plan.report import cluster_of
from dslm.recipe.load import LoadedRecipe, load_recipe
from tests.decide.cases import KNOWN, ROWS, Row, let_fail, make_files
from tests.support.golden import SameAs, whole

ROOT = Path(__file__).parents[2]
# only the model itself knows how long, and what it sees
_TRACED = ("sequences no longer than the model's", "documents that don't see each other")
IDS = [f"{row.check}: {' '.join(row.red)}" for row in ROWS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path)
    return tmp_path


@pytest.fixture
def untraced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is traced, which is slow, but for a row whose check judges the profile."""
    of = getattr(request.node, "callspec", None)
    row = of.params.get("row") if of is not None else None
    if row is None or row.check not in _TRACED:
        none = (None, "not traced")
        monkeypatch.setattr("dslm.decide.job.profile_of", lambda *args, **more: none)


def _cluster(row: Row, loaded: LoadedRecipe) -> Cluster:
    if row.device is None:
        return local_cluster(ranks=loaded.recipe.parallel.ranks)
    return cluster_of(device_named(row.device), 2)


def _verbs(row: Row) -> frozenset[Verb]:
    return next(check.verbs for check in CHECKS if check.name == row.check) - {Verb.BARE}


def _install(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what a row is about stand for what is installed, and for what was found to fail."""
    if row.check == KNOWN:
        let_fail(monkeypatch)
    if row.installed:
        releases = dict(row.installed)
        monkeypatch.setattr("dslm.cluster.wrong_versions.installed_release", releases.get)


def _refusal(row: Row, overrides: tuple[str, ...], verb: Verb) -> DslmError | None:
    try:
        loaded = load_recipe(row.recipe, overrides)
        ready_job(loaded, _cluster(row, loaded), Asking(verb=verb))
    except DslmError as failure:
        return failure
    return None


def _words(failure: DslmError) -> str:
    parts = [failure.message, str(failure.where), failure.hint]
    for finding in failure.findings:
        parts += [finding.message, str(finding.where), finding.hint]
    return " ".join(parts)


def test_every_check_has_a_row_and_every_row_a_check() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names)) > 20
    assert {row.check for row in ROWS} == set(names)
    assert {row.check for row in ROWS if row.green} == set(names) - {"a disk to offload to"}


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_what_cannot_run_is_refused_and_what_can_is_not(
    row: Row, folder: Path, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(row, monkeypatch)
    if row.check == "packages that the recipe needs":
        monkeypatch.setitem(sys.modules, "trl", None)
    for verb in _verbs(row):
        failure = _refusal(row, row.red, verb)
        assert failure is not None, verb
        assert failure.exit_code == 2
        for word in row.says:
            assert word in _words(failure), _words(failure)
        places = [failure.where, *(finding.where for finding in failure.findings)]
        assert any(place.file is not None and place.key for place in places)
    if row.green:
        assert _refusal(row, row.green, Verb.TRAIN) is None


def test_all_that_is_said_of_what_cannot_run(
    folder: Path, untraced: None, monkeypatch: pytest.MonkeyPatch, same_as: SameAs
) -> None:
    text = ""
    for row in ROWS:
        if row.check in _TRACED:
            continue
        with monkeypatch.context() as patched:
            _install(row, patched)
            if row.check == "packages that the recipe needs":
                patched.setitem(sys.modules, "trl", None)
            for verb in sorted(_verbs(row)):
                failure = _refusal(row, row.red, verb)
                assert failure is not None
                said = whole(failure).replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")
                title = f"{row.check}: {row.recipe} {' '.join(row.red)}\n{said}"
                if not text.endswith(title):  # another verb says the same
                    text += title
    same_as("findings/checks.txt", text)


COMMANDS = {
    Verb.TRAIN: (
        ("train", "{recipe}", "--dry-run"),
        ("train", "{recipe}", "--slurm", "--num-gpus", "2", "--dry-run"),
        ("train", "{recipe}", "-o", "run"),
    ),
    Verb.VERIFY: (("verify", "{recipe}", "-o", "run"),),
    Verb.PLAN: (("plan", "{recipe}"),),
    Verb.LAUNCH: (("launch", "script.py", "--recipe", "{recipe}", "--dry-run"),),
    Verb.CONFIG: (("config", "{recipe}"),),
}


@pytest.mark.parametrize("row", [r for r in ROWS if r.device is None], ids=lambda row: row.check)
def test_every_verb_says_the_same(
    row: Row, folder: Path, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(row, monkeypatch)
    if row.check == "packages that the recipe needs":
        monkeypatch.setitem(sys.modules, "trl", None)
    # what only verification refuses besides, such as a task that it has no reference of
    others = [c for c in CHECKS if c.name == row.check or c.verbs != {Verb.VERIFY}]
    monkeypatch.setattr("dslm.decide.checks.every.CHECKS", tuple(others))
    before = sorted(folder.rglob("*"))
    said = {}
    for verb in _verbs(row):
        for command in COMMANDS[verb]:
            if row.of_cpu and "--slurm" in command:
                continue
            argv = [word.format(recipe=row.recipe) for word in command]
            argv += [word for override in row.red for word in ("--set", override)]
            with pytest.raises(DslmError) as caught:
                app(argv, standalone_mode=False)
            failure = caught.value
            said[" ".join(command)] = (_words(failure), failure.exit_code)
    assert len(set(said.values())) == 1, said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [*COMMANDS[Verb.TRAIN], *COMMANDS[Verb.PLAN], *COMMANDS[Verb.LAUNCH]], ids=" ".join
)
def test_a_plan_that_does_not_fit_is_refused_with_ways_out(
    command: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinfo = folder / "sinfo"  # of a Slurm without GPUs
    sinfo.write_text("#!/bin/sh\necho '(null)'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    sizes = "vocab_size=1024 hidden_size=65536 intermediate_size=262144 num_hidden_layers=80"
    argv = [word.format(recipe="quickstart") for word in command]
    for size in sizes.split():
        argv += ["--set", f"model.architecture.{size}"]
    with pytest.raises(DslmError) as caught:
        app(argv, standalone_mode=False)
    assert caught.value.exit_code == 4
    assert ("--force" in caught.value.hint) == (command[0] != "plan")  # which starts nothing
    assert "devices" in caught.value.hint


def test_tasks_have_the_heads_that_the_worker_builds() -> None:
    from dslm.worker.tasks import _TASKS

    assert {name: task.auto_class for name, task in _TASKS.items()} == HEADS


def test_what_is_named_as_missing_is_really_missing() -> None:
    """The rows about packages say nothing where these are installed."""
    for package in ("flash_attn", "liger_kernel"):
        assert importlib.util.find_spec(package) is None
