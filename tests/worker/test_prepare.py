"""Preparing data: every bad record is named, nothing is done twice, the same data is the same."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from dslm.errors import DataError, DslmError
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe
from dslm.worker.data import prepare as prepare_module
from dslm.worker.data.packing import packed_sample
from dslm.worker.data.prepare import Prepared, damaged_shards, prepare
from dslm.worker.data.tokenizer import train_tokenizer
from dslm.worker.tasks import task_of

WORDS = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "omicron",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([" ".join(WORDS)] * 20, 300)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _recipe(task: str, train: Any, **settings: Any) -> Recipe:
    preset = "quickstart" if task == "pretrain" else f"quickstart-{task}"
    given = {"data.train": json.dumps(train), "data.sequence_length": 32, "data.eval": 0}
    given |= {"data.max_documents": "null"}
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    return load_recipe(preset, [f"{key}={value}" for key, value in given.items()]).recipe


def _prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Prepared:
    task = task_of(recipe)
    used = tokenizer if task.tokenizer else None
    return prepare(recipe, task.encoder(recipe, used), used)


def _documents(count: int) -> list[str]:
    """Texts of different lengths, all different."""
    return [
        " ".join(WORDS[i % 15] for i in range(n, n + 3 + n % 40)) + f" {n}" for n in range(count)
    ]


def _write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


GOOD = {
    "pretrain": {"text": "alpha beta"},
    "sft": {"prompt": "alpha", "completion": "beta"},
    "dpo": {"prompt": "alpha", "chosen": "beta", "rejected": "gamma"},
    "seq2seq": {"prompt": "alpha", "completion": "beta"},
    "classify": {"text": "alpha beta", "label": "greek"},
    "sequence": {"items": [1, 2, 3]},
}
BAD = [
    ("pretrain", '{"text": "alpha', "is not JSON"),
    ("pretrain", '["alpha"]', "is not a JSON object"),
    ("pretrain", '{"txt": "alpha"}', "has no field `text` (data.text_field), only `txt`"),
    ("pretrain", '{"text": 7}', "its `text` is no text but int"),
    ("pretrain", '{"text": "  "}', "its `text` is empty"),
    ("sft", '{"prompt": "alpha"}', "has no field `completion`"),
    ("sft", '{"prompt": "alpha", "completion": ""}', "its `completion` is empty"),
    ("sft", json.dumps({"prompt": "alpha " * 99, "completion": "b"}), "its prompt alone fills 32"),
    ("dpo", '{"prompt": "a", "chosen": "b"}', "has no field `rejected`"),
    ("seq2seq", '{"completion": "b"}', "has no field `prompt`"),
    ("classify", '{"text": "a"}', "has no `label`"),
    ("classify", '{"text": "a", "label": 1.5}', "neither text nor a whole number"),
    ("sequence", '{"items": "1 2"}', "has no `items`"),
    ("sequence", '{"items": [4]}', "fewer than two items"),
    ("sequence", '{"items": [4, -1]}', "a negative item"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "line", "message"), BAD)
def test_a_bad_record_is_counted_and_named_or_fatal(
    task: str, line: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(f"{json.dumps(GOOD[task])}\n{line}\n")
    statistics = _prepare(_recipe(task, str(file)), tokenizer).statistics
    assert statistics["bad_records"] == 1
    assert statistics["examples"][0].startswith(f"{file}:2: ")
    assert message in statistics["examples"][0]
    with pytest.raises(DataError) as caught:
        _prepare(_recipe(task, str(file), data__on_error="fail"), tokenizer)
    assert message in caught.value.message
    assert str(caught.value.where) == f"{file}:2"


def test_text_that_is_not_utf8_and_a_broken_table(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "good.txt").write_text("alpha")
    (tmp_path / "latin.txt").write_bytes("äöü".encode("latin-1"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is none")
    statistics = _prepare(_recipe("pretrain", str(tmp_path)), tokenizer).statistics
    assert statistics["bad_records"] == 2
    assert statistics["train"]["documents"] == 1


def test_nothing_good_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("{}\n")
    with pytest.raises(DataError, match="not one document"):
        _prepare(_recipe("pretrain", str(file)), tokenizer)


def test_an_item_beyond_the_model_is_an_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file = _write(tmp_path / "data.jsonl", [{"items": [1, 256]}])
    with pytest.raises(DslmError, match="item 256 is beyond"):
        _prepare(_recipe("sequence", str(file)), tokenizer)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "parquet", "arrow"])
def test_every_format_gives_the_same_samples(
    suffix: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = _documents(30)
    plain = _write(tmp_path / "plain.jsonl", [{"text": text} for text in texts])
    file = tmp_path / f"data.{suffix}"
    table = datasets.Dataset.from_dict({"text": texts})
    if suffix == "csv":
        table.to_csv(file, index=False)
    elif suffix == "parquet":
        table.to_parquet(file)
    elif suffix == "arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.data.schema) as out:
            out.write_table(table.data.table)
    elif suffix.endswith("gz"):
        file.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        with pa.output_stream(str(file), compression="zstd" if "zst" in suffix else None) as out:
            out.write(plain.read_bytes())
    expected = _prepare(_recipe("pretrain", str(plain)), tokenizer).train
    found = _prepare(_recipe("pretrain", str(file)), tokenizer).train
    assert len(found) == len(expected)
    for index in range(len(found)):
        assert found[index]["input_ids"].tolist() == expected[index]["input_ids"].tolist()


def _texts(prepared: Prepared, tokenizer: PreTrainedTokenizerFast, shard: int) -> set[str]:
    """The documents in one file, read with `datasets` as anybody could."""
    file = prepared.folder / prepared.statistics["train"]["shards"][shard]["file"]
    found = set()
    for row in datasets.Dataset.from_file(str(file)):
        ends = np.cumsum(row["lengths"])
        for start, end in zip([0, *ends], ends, strict=False):
            found.add(tokenizer.decode(row["input_ids"][start:end], skip_special_tokens=True))
    return found


def test_hash_shards_keep_documents_where_they_are_whatever_is_added(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = _documents(60)
    settings = {"data__shards": 3, "data__shard_by": "hash", "data__sequence_length": 128}
    few = _write(tmp_path / "few.jsonl", [{"text": t} for t in texts[:40]])
    many = _write(tmp_path / "many.jsonl", [{"text": t} for t in reversed(texts)])
    first = _prepare(_recipe("pretrain", str(few), **settings), tokenizer)
    second = _prepare(_recipe("pretrain", str(many), **settings), tokenizer)
    shards = [_texts(first, tokenizer, shard) for shard in range(3)]
    assert sorted(t for shard in shards for t in shard) == sorted(texts[:40])
    for shard, documents in enumerate(shards):
        assert documents <= _texts(second, tokenizer, shard)


def test_range_shards_are_contiguous(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = _documents(30)
    file = _write(tmp_path / "data.jsonl", [{"text": t} for t in texts])
    recipe = _recipe("pretrain", str(file), data__shards=3, data__sequence_length=128)
    prepared = _prepare(recipe, tokenizer)
    assert [_texts(prepared, tokenizer, s) for s in range(3)] == [
        set(texts[start : start + 10]) for start in (0, 10, 20)
    ]


def test_duplicates_are_counted_and_left_out_when_asked(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = _documents(10)
    file = _write(tmp_path / "data.jsonl", [{"text": t} for t in [*texts, *texts[:4]]])
    kept = _prepare(_recipe("pretrain", str(file)), tokenizer).statistics["train"]
    dropped = _prepare(_recipe("pretrain", str(file), data__deduplicate="true"), tokenizer)
    assert kept["duplicates"] == 4
    assert kept["shards"][0]["documents"] == 14
    assert dropped.statistics["train"]["shards"][0]["documents"] == 10


def test_the_held_out_documents_stay_held_out_whatever_is_added(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = _documents(80)
    held = []
    for count in (40, 80):
        file = _write(tmp_path / f"{count}.jsonl", [{"text": t} for t in texts[:count]])
        recipe = _recipe("pretrain", str(file), data__eval=0.3, data__packing="false")
        prepared = _prepare(recipe, tokenizer)
        assert prepared.eval is not None
        held.append({tuple(prepared.eval[i]["input_ids"]) for i in range(len(prepared.eval))})
    assert held[0] < held[1]
    assert 5 < len(held[0]) < 20


def test_weights_say_how_often_an_epoch_shows_a_source(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = _documents(30)
    for name, part in (("a", texts[:10]), ("b", texts[10:20]), ("c", texts[20:])):
        _write(tmp_path / f"{name}.jsonl", [{"text": t} for t in part])
    train = [
        {"path": str(tmp_path / "a.jsonl"), "weight": 2},
        {"path": str(tmp_path / "b.jsonl"), "weight": 0.5},
        str(tmp_path / "c.jsonl"),
    ]
    settings = {"data__packing": "false", "data__sequence_length": 128}
    prepared = _prepare(_recipe("pretrain", train, **settings), tokenizer)
    seen = [tuple(prepared.train[i]["input_ids"]) for i in range(len(prepared.train))]
    assert len(seen) == 2 * 10 + 5 + 10
    counts = sorted(seen.count(sample) for sample in set(seen))
    assert counts == [1] * 15 + [2] * 10


def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_PART", 10)
    file = _write(tmp_path / "data.jsonl", [{"text": t} for t in _documents(45)])
    recipe = _recipe("pretrain", str(file))
    encoder = task_of(recipe).encoder(recipe, tokenizer)
    encoded: list[int] = []
    original = type(encoder).encode

    def encode(self: Any, records: list[dict[str, Any]]) -> Any:
        if len(encoded) == 3:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(len(records))
        return original(self, records)

    monkeypatch.setattr(type(encoder), "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, encoder, tokenizer)
    prepared = prepare(recipe, encoder, tokenizer)
    assert encoded == [10, 10, 10, 0, 10, 5]
    assert prepared.statistics["train"]["documents"] == 45
    assert not (prepared.folder / "parts").exists()
    prepare(recipe, encoder, tokenizer)
    assert len(encoded) == 6


def test_damage_is_found(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = _write(tmp_path / "data.jsonl", [{"text": t} for t in _documents(30)])
    recipe = _recipe("pretrain", str(file))
    prepared = _prepare(recipe, tokenizer)
    assert damaged_shards(prepared) == []
    shard = prepared.folder / "train-00000-of-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert damaged_shards(prepared) == [shard.name]
    shard.write_bytes(content[:-8])
    with pytest.raises(DataError, match="is damaged"):
        _prepare(recipe, tokenizer)


def test_only_the_answers_of_a_chat_are_learnt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = [
        {"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"},
        {"role": "user", "content": "gamma"}, {"role": "assistant", "content": "delta"},
    ]  # fmt: skip
    file = _write(tmp_path / "data.jsonl", [{"messages": messages}])
    recipe = _recipe("sft", str(file), data__sequence_length=128)
    sample = packed_sample(_prepare(recipe, tokenizer).train[0], 128, 0)
    learnt = sample["input_ids"][sample["labels"] != -100]
    assert tokenizer.decode(learnt) == "beta\ndelta\n"
    tokenizer.chat_template = None
    with pytest.raises(DslmError, match="no chat template"):
        _prepare(recipe, tokenizer)


def test_a_folder_of_images_has_its_folders_as_labels(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (9, 7), number).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"\x89PNG no more")
    recipe = _recipe("vision", str(tmp_path / "images"))
    prepared = _prepare(recipe, tokenizer)
    assert prepared.labels == ["cat", "dog"]
    assert len(prepared.train) == 6
    assert "broken.png" in prepared.statistics["examples"][0]
