"""The matrix of what works with what is whole, true where it is tried again, and refuses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import pytest

from benchmarks import matrix as runner
from benchmarks import resumes
from dslm.cluster.detect import local_cluster
from dslm.codec import decode
from dslm.decide import matrix as found_of
from dslm.decide.axes import ROWS, cells
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.matrix import Matrix, Result, filled, recorded, text_of
from dslm.decide.ready import refusal
from dslm.recipe.features import FEATURES
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Optimizer, Parallel, Recipe
from tests.decide.cases import let_fail
from tests.support.warm import work_beside

# keys that say where and how, of which the axes have the stage, or that stand for others
_NO_FEATURE = {"zero_stage", "nvme_path", "ranks", "zeropp"}


def test_a_feature_without_a_row_makes_the_matrix_old() -> None:
    named = {row.key for row in ROWS}
    assert {each.key for each in FEATURES} <= named
    assert {
        f"parallel.{name}" for name in Parallel.model_fields if name not in _NO_FEATURE
    } <= named
    values = {row.name for row in ROWS}
    for name in get_args(Optimizer.model_fields["name"].annotation):
        assert name == "adamw" or f"optimizer.name={name}" in values
    for choice in get_args(Recipe.model_fields["quantize"].annotation):
        assert all(f"quantize={kind}" in values for kind in get_args(choice))


def test_every_cell_is_in_the_file_and_no_other() -> None:
    matrix = recorded()
    assert text_of(filled(matrix, {})) == found_of.FILE.read_text()
    names = {(each.device, each.family, each.feature) for each in cells()}
    there = {
        (device, family, feature)
        for device, families in matrix.cells.items()
        for family, features in families.items()
        for feature in features
    }
    assert there == names


def test_it_is_of_the_versions_that_are_tested() -> None:
    assert recorded().versions == found_of.installed()


def test_what_a_check_refused_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dslm.decide.job.profile_of", lambda *given, **more: (None, "not traced"))
    matrix, rows = recorded(), {row.name: row for row in ROWS}
    refused = [
        cell
        for cell in cells()
        if matrix.at(cell).result == Result.REFUSED and not rows[cell.feature].trained
    ]
    for cell in random.Random(0).sample(refused, 25):
        found = runner.judged(cell)
        assert found is not None, cell
        assert (found.result, found.by) == ("refused", matrix.at(cell).by), cell


@pytest.mark.slow
def test_what_trained_trains(tmp_path: Path) -> None:
    matrix, file = recorded(), tmp_path / "matrix.json"
    trained = [cell for cell in cells() if matrix.at(cell).result == Result.OK]
    for cell in random.Random(0).sample(trained, 3):
        assert work_beside("benchmarks.matrix", ["--file", str(file), "--again", str(cell)]) == 0
        assert decode(Matrix, file.read_bytes()).at(cell).result == Result.OK, cell


@pytest.mark.slow
def test_a_pair_of_the_resume_table_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "resumes.json"
    assert work_beside("benchmarks.resumes", ["--file", str(file), "1 × 2 → sequence 2 × 2"]) == 0
    off = resumes.recorded(file).pairs["llama"]["1 × 2"]["sequence 2 × 2"]
    assert isinstance(off, float), off
    assert off < resumes.MOST


def test_no_pair_of_the_resume_table_is_off_by_more_than_the_bound() -> None:
    found = resumes.recorded()
    for family in resumes.LAYOUTS:
        assert found.bound(family) < resumes.MOST
        for before, row in found.pairs.get(family, {}).items():
            for after, off in row.items():
                assert isinstance(off, float), (family, before, after, off)
                assert off < resumes.MOST, (family, before, after)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Matrix:
    let_fail(monkeypatch)
    monkeypatch.setattr("dslm.decide.job.profile_of", lambda *given, **more: (None, "not traced"))
    return found_of.recorded()


def _refused(*more: str, ranks: int = 2) -> tuple[str, str] | None:
    loaded = load_recipe("quickstart", [f"parallel.ranks={ranks}", *more])
    return refusal(loaded, local_cluster(ranks=ranks), Asking(verb=Verb.TRAIN))


def test_what_is_known_to_fail_is_refused_with_the_reason_and_the_versions(planted: Matrix) -> None:
    found = _refused("parallel.offload=optimizer")
    assert found is not None
    check, why = found
    assert check == "what is known to fail"
    assert "the operator stops" in why
    assert planted.versions["deepspeed"] in why
    assert "2026-01-02" in why


@pytest.mark.parametrize(
    "more",
    [
        (),  # without the feature
        ("parallel.offload=optimizer", "parallel.zero_stage=3"),
        ("parallel.offload=optimizer", "precision=bf16"),
        ("parallel.offload=optimizer", "model.architecture.model_type=mistral"),
        ("parallel.offload=optimizer", "guards.on_trouble=warn"),
    ],
)
def test_what_is_not_known_to_fail_is_not(planted: Matrix, more: tuple[str, ...]) -> None:
    assert _refused(*more) is None


def test_one_rank_was_never_tried(planted: Matrix) -> None:
    assert _refused("parallel.offload=optimizer", ranks=1) is None


def test_other_versions_are_not_refused(planted: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_of, "installed", lambda: {"deepspeed": "0.19.9"})
    assert _refused("parallel.offload=optimizer") is None
