"""The card of a model names what it was trained from, wherever it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.recipe.load import dump_recipe, load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.documents import HostSlots, write_document
from dslm.run.manifest import new_manifest
from dslm.worker.model_card import model_card


def test_a_folder_beside_where_the_run_began_is_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "began/models/base").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "began")
    cards = {}
    for name in ("models/base", "models/other"):
        run = RunDirectory(tmp_path / name)
        run.path.mkdir(parents=True)
        settings = ["model.init=pretrained", f"model.name={name}"]
        run.recipe.write_text(dump_recipe(load_recipe("quickstart", settings).recipe))
        hosts = [HostSlots(host="w1", slots=1)]
        write_document(run.manifest, new_manifest(name="x", command=[], hosts=hosts))
        cards[name] = model_card(run, 1, adapters=False)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert model_card(run, 1, adapters=False) == cards[name]
        monkeypatch.chdir(tmp_path / "began")
    assert "base_model" not in cards["models/base"]
    assert "- trained from: models/base" in cards["models/base"]
    assert "base_model: models/other" in cards["models/other"]
