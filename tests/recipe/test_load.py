"""A recipe is loaded whole or refused with every mistake: its line, and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.errors import InputError, RecipeError
from dslm.presets import preset_names
from dslm.recipe.findings import known_keys
from dslm.recipe.load import dump_recipe, load_recipe, read_resolved


def _file(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", preset_names("recipes", ".yaml"))
def test_every_preset_loads_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.description
    assert recipe.model.architecture


def test_a_child_changes_only_what_it_names(tmp_path: Path) -> None:
    mine = load_recipe(_file(tmp_path, "extends: quickstart\noptimizer: {lr: 1.0e-3}\n")).recipe
    parent = load_recipe("quickstart").recipe
    assert mine.optimizer.lr == 1e-3
    assert mine.optimizer.betas == parent.optimizer.betas
    assert mine.model == parent.model


def test_a_duration_is_replaced_as_a_whole(tmp_path: Path) -> None:
    mine = load_recipe(_file(tmp_path, "extends: quickstart\nduration: {epochs: 2}\n")).recipe
    assert mine.duration.epochs == 2
    assert mine.duration.steps is None
    assert load_recipe("quickstart", ["duration.tokens=1000"]).recipe.duration.steps is None


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = "extends: quickstart\nbatch:\n  global_size: -1\n  micro: 2\nsed: 3\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(_file(tmp_path, text))
    lines = {finding.where.key: finding.where.line for finding in caught.value.findings}
    assert lines == {"batch.global_size": 3, "batch.micro": 4, "sed": 5}
    hints = " ".join(finding.hint for finding in caught.value.findings)
    assert "seed" in hints
    assert "micro_size" in hints


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    _file(tmp_path, "extends: ./b.yaml\n", "a.yaml")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(_file(tmp_path, "extends: ./a.yaml\n", "b.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "model: {init: scratch}",
        "model: {init: pretrained}",
        "extends: quickstart\nduration: {steps: 1, epochs: 1}",
        "extends: quickstart\nparallel: {zero_stage: 2, zeropp: true}",
        "extends: quickstart\nparallel: {zero_stage: 3, offload: nvme}",
        "extends: quickstart\nparallel: {zero_stage: 1, offload: all}",
        "extends: quickstart\nparallel: {zero_stage: 0, offload: optimizer}",
        "- a list",
        "extends: quickstart\nseed: 1\nseed: 2",
        "extends: {a: b}",
        "extends: nothing-like-this",
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(_file(tmp_path, text + "\n"))


def test_a_resolved_recipe_reads_back_unchanged(tmp_path: Path) -> None:
    for name in ("quickstart", "t5-base", "llama-3.1-405b"):
        recipe = load_recipe(name).recipe
        assert read_resolved(Path(_file(tmp_path, dump_recipe(recipe)))) == recipe


def test_every_key_is_explained() -> None:
    from dslm.recipe.catalog import recipe_schema

    definitions = recipe_schema()["$defs"].values()
    silent = [
        f"{definition['title']}.{name}"
        for definition in definitions
        for name, field in definition["properties"].items()
        if not field.get("description")
    ]
    assert not silent
    assert len(known_keys()) > 50


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        ([], "batch.global_size", "mine.yaml:3 (batch.global_size)"),
        ([], "deepspeed.a.b", "mine.yaml:4 (deepspeed.a.b)"),
        ([], "batch.micro_size", "mine.yaml:2 (batch.micro_size)"),  # absent: its section is there
        (
            [],
            "checkpoint.keep",
            "mine.yaml (checkpoint.keep)",
        ),  # nobody gave it: it is missing here
        (["batch.global_size=8"], "batch.global_size", "--set batch.global_size"),
        (["batch={global_size: 8}"], "batch.global_size", "--set batch.global_size"),
        (["deepspeed={c: {d: 1}}"], "deepspeed.c.d", "--set deepspeed.c.d"),
        (["deepspeed={c: {d: 1}}"], "deepspeed.a.b", "--set deepspeed.a.b"),  # the new one lacks it
        (["data.train=[{path: stdlib}]"], "data.train.0.path", "--set data.train.0.path"),
    ],
)
def test_a_key_is_found_where_the_user_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], key: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "extends: quickstart\nbatch:\n  global_size: 4\ndeepspeed: {a: {b: 1}}\n"
    loaded = load_recipe(_file(tmp_path, text), overrides)
    assert str(loaded.where(key)) == said


def test_what_only_the_preset_says_stands_in_the_preset(tmp_path: Path) -> None:
    loaded = load_recipe(_file(tmp_path, "extends: quickstart\n"))
    assert str(loaded.where("checkpoint.every").file).endswith("quickstart.yaml")


@pytest.mark.parametrize("value", ["[", "{a: 1, a: 2}", "-1", "{global_size: -1}"])
def test_an_override_is_named_by_its_option(value: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("quickstart", [f"batch={value}"])
    assert str(caught.value.where).startswith("--set batch")
