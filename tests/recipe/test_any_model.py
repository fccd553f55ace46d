"""Any model is trained, planned and written down by its name or folder, without a preset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.decide.job import of_model
from dslm.recipe.catalog import new_recipe_text, put_on
from dslm.recipe.load import load_recipe
from tests.conftest import Dslm


def _folder(path: Path, **config: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").touch()
    return path


SMALL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip


def test_a_folder_says_its_task_and_its_longest_sample(tmp_path: Path) -> None:
    llama = load_recipe(*of_model(str(_folder(tmp_path / "llama", **SMALL))))
    assert llama.name == "llama"
    assert (llama.recipe.task, llama.recipe.data.sequence_length) == ("pretrain", 256)
    bert = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    found = load_recipe(*of_model(str(_folder(tmp_path / "bert", **bert))))
    assert found.recipe.task == "mlm"


def test_purposes_go_on_any_model(tmp_path: Path) -> None:
    name, given = of_model(str(_folder(tmp_path / "llama", **SMALL)))
    loaded = load_recipe(name, [*given, *put_on(["sft,lora"])])
    assert loaded.name == "llama-sft-lora"
    assert loaded.recipe.task == "sft"
    assert loaded.recipe.lora is not None
    by_name = load_recipe(*of_model("org/model-it"))
    assert by_name.name == "model-it"
    assert by_name.recipe.model.name == "org/model-it"


def test_the_written_file_says_the_same(tmp_path: Path) -> None:
    model = str(_folder(tmp_path / "llama", **SMALL))
    file = tmp_path / "mine.yaml"
    file.write_text(new_recipe_text("quickstart", ["sft,lora"], model))
    recipe = load_recipe(str(file)).recipe
    assert recipe.model.name == model
    assert recipe.task == "sft"
    assert recipe.lora is not None


def test_every_verb_takes_any_model(warm: Dslm, tmp_path: Path) -> None:
    model = str(_folder(tmp_path / "llama", **SMALL))
    put = ("--model", model, "--with", "sft,lora")
    for verb in ("plan", "config"):
        done = warm(verb, *put, "--set", "precision=fp32", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
    shown = warm("recipes", "show", *put, "--json")
    assert json.loads(shown.stdout)["model"]["name"] == model
    written = warm("recipes", "new", "mine", *put)
    assert written.returncode == 0, written.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("train", "--model", "./gone"), "there is no model folder `./gone`"),
        (("train", "quickstart", "--model", "gpt2"), "both say which model"),
        (("train", "--with", "sft"), "give a recipe, or any model"),
        (("recipes", "new", "a", "--from", "gpt2-124m", "--model", "x"), "both say which model"),
    ],
)
def test_what_names_no_model_or_two_is_refused(
    dslm: Dslm, argv: tuple[str, ...], said: str
) -> None:
    done = dslm(*argv)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_it_lacks_is_not_called_a_mistake_in_a_file_of_dslm(
    tmp_path: Path, dslm: Dslm
) -> None:
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    model = _folder(tmp_path / "llama", **SMALL)
    (model / "tokenizer_config.json").write_text("{}")
    done = dslm(
        "train", "--model", str(model), "--with", "sft", "-s", f"data.train={chats}", "--dry-run"
    )
    assert done.returncode == 2
    assert "error: data.chat_template: the data are chats, and the tokenizer has no" in done.stderr
