"""A purpose composes with any model, by `extends` and `--with` alike, and trains nothing alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.errors import OptionError, RecipeError
from dslm.presets import preset_names, purpose_names
from dslm.recipe.catalog import new_recipe_text, purposes, put_on
from dslm.recipe.load import load_recipe
from tests.conftest import Dslm

MODELS = ("llama-3.1-8b", "qwen3-0.6b", "gpt2-124m", "mixtral-8x7b", "smollm2-135m")


def test_purposes_are_no_models() -> None:
    assert {"sft", "lora", "dpo", "orpo", "kto", "reward", "grpo", "continue"} <= set(
        purpose_names()
    )
    assert not set(purpose_names()) & set(preset_names("recipes", ".yaml"))


@pytest.mark.parametrize("purpose", purposes(), ids=lambda purpose: purpose.name)
@pytest.mark.parametrize("model", MODELS)
def test_a_purpose_goes_with_a_model(model: str, purpose: object) -> None:
    name = purpose.name  # type: ignore[attr-defined]
    plain = load_recipe(model)
    loaded = load_recipe(model, put_on([name]))
    assert loaded.name == f"{model}-{name}"
    assert loaded.recipe.model.architecture == plain.recipe.model.architecture
    assert loaded.recipe.description == plain.recipe.description
    assert loaded.recipe != plain.recipe


@pytest.mark.parametrize("purpose", purposes(), ids=lambda purpose: purpose.name)
def test_a_purpose_says_when_to_take_it_and_where_its_numbers_are_from(purpose: object) -> None:
    assert "# When" in purpose.comment  # type: ignore[attr-defined]
    assert "arXiv" in purpose.comment  # type: ignore[attr-defined]


def test_extends_with_and_set_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: [llama-3.1-8b, sft, lora]\n")
    given = ["data.train=stdlib", "optimizer.lr=1e-5"]
    by_file = load_recipe(str(file), given).recipe
    by_option = load_recipe("llama-3.1-8b", [*put_on(["sft,lora"]), *given])
    assert by_file == by_option.recipe
    assert by_file == load_recipe("llama-3.1-8b", ["extends=[sft, lora]", *given]).recipe
    assert by_file == load_recipe("llama-3.1-8b", [*put_on(["sft", "lora"]), *given]).recipe
    assert by_file.task == "sft"
    assert by_file.lora is not None
    assert by_file.optimizer.lr == 1e-5
    assert by_option.where("lora.rank").file is not None
    assert str(by_option.where("lora.rank").file).endswith("lora.yaml")


def test_the_last_purpose_wins() -> None:
    lora_last = load_recipe("gpt2-124m", put_on(["dpo,lora"])).recipe
    dpo_last = load_recipe("gpt2-124m", put_on(["lora,dpo"])).recipe
    assert lora_last.optimizer.lr == 2e-4
    assert dpo_last.optimizer.lr == 5e-7
    assert lora_last.lora == dpo_last.lora


@pytest.mark.parametrize(
    ("names", "said"),
    [(["sfx"], "no purpose `sfx`"), (["sft,dpo"], "both decide"), (["qwen3-8b"], "no purpose")],
)
def test_what_is_no_purpose_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        put_on(names)
    assert str(caught.value.where) == "--with"


def test_a_purpose_alone_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="is a purpose") as caught:
        load_recipe("sft")
    assert "--with sft" in caught.value.hint


def test_a_purpose_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "house.yaml").write_text("seed: 7\n")
    file = str(tmp_path / "house.yaml")
    recipe = load_recipe("gpt2-124m", put_on([f"sft,{file}"])).recipe
    assert (recipe.seed, recipe.task) == (7, "sft")


def test_a_new_recipe_has_the_purposes_and_their_comments(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(new_recipe_text("qwen3-8b", ["sft,lora"]))
    loaded = load_recipe(str(file)).recipe
    wanted = load_recipe("qwen3-8b", put_on(["sft,lora"])).recipe
    assert (loaded.task, loaded.lora) == (wanted.task, wanted.lora)
    assert loaded.optimizer.lr == wanted.optimizer.lr
    assert loaded.duration == wanted.duration
    assert "# When there are answers" in file.read_text()
    assert "# When memory is short" in file.read_text()


def test_the_command_line_lists_and_takes_purposes(warm: Dslm, tmp_path: Path) -> None:
    said = warm("recipes", "list").stdout
    assert said.index("qwen3-8b") < said.index("purpose ") < said.index("lora")
    rows = {row["name"]: row for row in json.loads(warm("recipes", "list", "--json").stdout)}
    assert rows["lora"]["parameters"] is None
    assert rows["gpt2-124m"]["parameters"]
    shown = json.loads(warm("recipes", "show", "gpt2-124m", "--with", "sft,lora", "--json").stdout)
    assert shown["task"] == "sft"
    script = warm(
        *("train", "gpt2-124m", "--with", "sft", "-s", "data.train=stdlib", "--slurm"),
        *("--num-gpus", "1", "--dry-run", "--force"),
    )
    assert "extends=sft" in script.stdout, script.stderr
