"""`dslm recipes`: what is listed can be shown, and what is written can be trained."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Dslm


def test_the_list_is_an_array_of_presets(warm: Dslm) -> None:
    rows = json.loads(warm("recipes", "list", "--json").stdout)
    assert len(rows) >= 31
    for row in rows:
        assert set(row) == {"name", "task", "parameters", "description"}
        assert row["description"]
    sizes = {row["name"]: row["parameters"] for row in rows}
    assert sizes["gpt2-124m"] == 124_439_808
    assert {
        row["task"] for row in json.loads(warm("recipes", "list", "--task", "mlm", "--json").stdout)
    } == {"mlm"}


def test_a_new_recipe_extends_its_preset_and_loads(warm: Dslm, tmp_path: Path) -> None:
    assert warm("recipes", "new", "mine", "--from", "smollm2-135m").returncode == 0
    shown = warm("recipes", "show", "mine.yaml", "--json")
    recipe = json.loads(shown.stdout)
    assert recipe["model"]["name"].endswith("SmolLM2-135M")
    again = warm("recipes", "new", "mine.yaml")
    assert again.returncode == 2
    assert "already exists" in again.stderr


def test_a_new_recipe_in_another_folder_sees_the_same_files(warm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "model, mine").mkdir()
    (tmp_path / "a.txt").write_text("text")
    text = "extends: quickstart\ndata: {train: a.txt}\nseed: 7\n"
    (tmp_path / "my #1, recipe.yaml").write_text(text)
    for number, put in enumerate((("--from", "my #1, recipe.yaml"), ("--model", "./model, mine"))):
        written = warm("recipes", "new", f"there/{number}.yaml", *put, "--with", "lora")
        assert written.returncode == 0, written.stderr
        shown = warm("recipes", "show", f"there/{number}.yaml", "--json")
        recipe = json.loads(shown.stdout)
        assert recipe["lora"] is not None
        seen = (recipe["data"]["train"], recipe["seed"]) if number == 0 else recipe["model"]["name"]
        assert seen == (("a.txt", 7) if number == 0 else "./model, mine")


def test_a_new_recipe_needs_a_file_and_a_model(warm: Dslm) -> None:
    for argv, said in (
        (("", "--from", "quickstart"), "names no file"),
        ((".",), "names no file"),
        (("..",), "names no file"),
        (("mine", "--from", "sft"), "is a purpose"),
    ):
        done = warm("recipes", "new", *argv)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_recipe_shows_what_is_known_to_work_with_its_model(warm: Dslm) -> None:
    known = json.loads(warm("recipes", "show", "llama-3.2-1b", "--json").stdout)["matrix"]
    assert known["family"] == "llama"
    assert {"made", "versions", "installed", "cpu", "cuda"} < set(known)
    places = [
        (precision, stage)
        for found in known["cpu"]["parallel.offload=optimizer"]
        for precision, stages in found["stages"].items()
        for stage in stages
    ]
    assert len(places) == len(set(places)) == 8
    shown = json.loads(warm("recipes", "show", "vit-base", "--json").stdout)
    assert shown["matrix"] is None


def test_the_schema_is_json_schema(warm: Dslm) -> None:
    schema = json.loads(warm("recipes", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert "extends" in schema["properties"]


def test_version_and_completion(warm: Dslm) -> None:
    assert warm("--version").stdout.startswith("dslm ")
    assert "--install-completion" in warm("--help").stdout
    words = {"_DSLM_COMPLETE": "complete_bash", "COMP_WORDS": "dslm rec", "COMP_CWORD": "1"}
    assert warm(**words).stdout.split() == ["recipes"]
