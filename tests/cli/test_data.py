"""`dslm data`: what is prepared, what is learnt of it, and what was wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Dslm

# two answers and a broken line
RECORDS = '{"prompt": "alpha ", "completion": "beta"}\n{"prompt": "gamma\n'


def _recipe(folder: Path) -> list[str]:
    (folder / "data.jsonl").write_text(RECORDS)
    return ["quickstart-sft", "-s", "data.train=data.jsonl", "-s", "data.eval=0"]


def test_samples_show_what_is_learnt_of_them(warm: Dslm, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    shown = warm("data", "show", *recipe, **cache)
    assert shown.returncode == 0, shown.stderr
    assert "alpha ⟦beta" in shown.stdout
    assert "data.jsonl:2: is not JSON" in shown.stderr
    document = json.loads(warm("data", "show", *recipe, "--json", **cache).stdout)
    (sample,) = document["shown"]
    assert [segment["learnt"] for segment in sample] == [False, True]
    assert document["train"]["documents"] == 1
    assert document["bad_records"] == 1


def test_prepared_once_checked_ever_after(warm: Dslm, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    argv = ["data", "prepare", *recipe, "--shards", "2", "--shard-by", "hash", "--json"]
    found = json.loads(warm(*argv, **cache).stdout)
    (shard,) = found["train"]["shards"]  # the other one would be empty
    assert (shard["documents"], shard["samples"]) == (1, 1)
    assert shard["checksum"]
    file = Path(found["folder"]) / shard["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = warm(*argv, **cache)
    assert again.returncode == 2
    assert file.name in again.stderr
    assert "delete the folder" in again.stderr
