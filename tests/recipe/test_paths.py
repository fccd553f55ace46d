"""A path in a recipe file is relative to that file; one of `--set` to the current folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dslm.errors import DataError
from dslm.recipe.data_paths import check_data, origins
from dslm.recipe.load import dump_recipe, load_recipe, read_resolved, recipe_of_run
from dslm.run.documents import HostSlots, write_document
from dslm.run.manifest import new_manifest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder and a recipe's folder beside it, each with a corpus of its own."""
    for name in (
        "here",
        "there/corpus",
        "there/model",
        "here/corpus",
        "here/only-here",
        "here/sub",
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in ("here", "there"):
        (tmp_path / name / "a.txt").write_text(name)
        (tmp_path / name / "corpus/b.txt").write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def _recipe(file: Path, text: str) -> str:
    file.write_text("extends: quickstart\n" + text)
    return str(file)


@pytest.mark.parametrize(
    "value", ["a.txt", "./a.txt", "corpus", "corpus/", "*.txt", "corpus/*.txt", "[{path: a.txt}]"]
)
@pytest.mark.parametrize("key", ["train", "eval"])
def test_the_recipes_own_folder_counts(folder: Path, key: str, value: str) -> None:
    written = value if value.startswith("[") else f"'{value}'"
    loaded = load_recipe(_recipe(folder / "there/r.yaml", f"data: {{{key}: {written}}}\n"))
    files = [file for origin in origins(loaded.recipe, key) for file in origin.files]
    assert files
    assert {file.read_text() for file in files} == {"there"}


@pytest.mark.parametrize("value", ["a.txt", "corpus", "*.txt"])
def test_an_override_is_seen_from_the_current_folder(folder: Path, value: str) -> None:
    recipe = load_recipe(_recipe(folder / "there/r.yaml", ""), [f"data.train='{value}'"]).recipe
    assert {f.read_text() for o in origins(recipe, "train") for f in o.files} == {"here"}


def test_a_parents_path_is_relative_to_the_parent(folder: Path) -> None:
    _recipe(folder / "there/r.yaml", "data: {train: a.txt}\nmodel: {tokenizer: ./model}\n")
    (folder / "here/sub/child.yaml").write_text("extends: ../../there/r.yaml\n")
    recipe = load_recipe("sub/child.yaml").recipe
    assert Path(str(recipe.data.train)) == folder / "there/a.txt"
    assert Path(str(recipe.model.tokenizer)) == folder / "there/model"


def test_in_the_current_folder_nothing_changes(folder: Path) -> None:
    text = "data: {train: a.txt}\nmodel: {name: ./corpus}\n"
    recipe = load_recipe(_recipe(folder / "here/r.yaml", text)).recipe
    assert recipe.data.train == "a.txt"
    assert recipe.model.name == "./corpus"


@pytest.mark.parametrize(
    "value", ["stdlib", "digits", "org/name", "/a/b.txt", "~/b.txt", "wikitext"]
)
def test_what_is_no_relative_path_stays(folder: Path, value: str) -> None:
    text = f"data: {{train: {value}}}\n"
    assert load_recipe(_recipe(folder / "there/r.yaml", text)).recipe.data.train == value


@pytest.mark.parametrize("value", ["only-here", "gone.txt", "gone/", "gone-*.txt"])
def test_the_error_says_where_was_looked(folder: Path, value: str) -> None:
    loaded = load_recipe(_recipe(folder / "there/r.yaml", f"data: {{train: '{value}'}}\n"))
    with pytest.raises(DataError) as caught:
        check_data(loaded.recipe)
    assert str(folder / "there") in caught.value.message
    assert "relative to its file" in caught.value.hint


def test_a_runs_paths_are_seen_from_where_it_was_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, file = folder / "there", folder / "recipe.yaml"
    monkeypatch.chdir(began)
    names = ["model.init=pretrained", "model.name=./model", "model.tokenizer=./model"]
    recipe = load_recipe("quickstart", [*names, "data.train=a.txt"]).recipe
    file.write_text(dump_recipe(recipe))
    hosts = [HostSlots(host="w1", slots=1)]
    manifest = new_manifest(name="x", command=[], hosts=hosts)
    write_document(folder / "manifest.json", manifest)
    assert recipe_of_run(file) == read_resolved(file) == recipe
    monkeypatch.chdir(folder / "here")
    for found in (recipe_of_run(file), load_recipe(str(file)).recipe):
        assert found.model.name == found.model.tokenizer == str(began / "model")
        assert found.data.train == str(began / "a.txt")
    for unknown in ("", str(folder / "gone")):
        write_document(folder / "manifest.json", replace(manifest, folder=unknown))
        assert recipe_of_run(file) == recipe


@pytest.mark.parametrize("text", ["{", "[]", '{"folder": "FOLDER/here"}', '{"attempts": 3}'])
def test_a_manifest_that_is_no_runs_says_nothing_of_a_recipe_beside_it(
    folder: Path, text: str
) -> None:
    (folder / "there/manifest.json").write_text(text.replace("FOLDER", str(folder)))
    file = _recipe(folder / "there/recipe.yaml", "data: {train: a.txt}\n")
    assert load_recipe(file).recipe.data.train == str(folder / "there/a.txt")
