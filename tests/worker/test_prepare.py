"""Preparing data: every bad record is named, nothing is done twice, the same data is the same."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from dslm.errors import DataError, RecipeError
from dslm.recipe.schema import Recipe
from dslm.worker.data import encode_parts
from dslm.worker.data.encode_parts import Encoder
from dslm.worker.data.packing import packed_sample
from dslm.worker.data.prepare import Prepared, damaged_shards, prepare
from dslm.worker.data.records import BadRecords
from dslm.worker.tasks import task_of
from tests.worker.preparing import CHAT, documents, prepared, recipe_of, write_lines

pytestmark = pytest.mark.usefixtures("cache")

GOOD = {
    "pretrain": {"text": "alpha beta"},
    "sft": {"prompt": "alpha", "completion": "beta"},
    "dpo": {"prompt": "alpha", "chosen": "beta", "rejected": "gamma"},
    "kto": {"prompt": "alpha", "completion": "beta", "label": False},
    "seq2seq": {"prompt": "alpha", "completion": "beta"},
    "classify": {"text": "alpha beta", "label": "greek"},
    "sequence": {"items": [1, 2, 3]},
}
BAD = [
    ("pretrain", '{"text": "alpha', "is not JSON"),
    ("pretrain", '["alpha"]', "is not a JSON object"),
    ("pretrain", '{"txt": "alpha"}', "has no field `text` (data.text_field), only `txt`"),
    ("pretrain", '{"text": 7}', "its `text` is not text but int"),
    ("pretrain", '{"text": "  "}', "its `text` is empty"),
    ("sft", '{"prompt": "alpha"}', "is a prompt without an answer"),
    ("sft", '{"prompt": "alpha", "completion": ""}', "its `completion` is empty"),
    ("sft", json.dumps({"prompt": "alpha " * 99, "completion": "b"}), "its prompt alone fills 32"),
    ("dpo", '{"prompt": "a", "chosen": "b"}', "has no `rejected`"),
    ("kto", '{"prompt": "a", "completion": "b", "label": 2}', "neither true nor false"),
    ("kto", json.dumps({"prompt": "alpha " * 99, "completion": "b", "label": True}), "fills 32"),
    ("seq2seq", '{"completion": "b"}', "its fields are `completion`"),
    ("classify", '{"text": "a"}', "has no `label`"),
    ("classify", '{"text": "a", "label": 1.5}', "neither text nor a whole number"),
    ("sequence", '{"items": "1 2"}', "has no `items`"),
    ("sequence", '{"items": [4]}', "fewer than two items"),
    ("sequence", '{"items": [4, -1]}', "a negative item"),
    ("pretrain", r'{"text": "\ud800"}', "half of a UTF-16 pair"),
    ("pretrain", "[" * 100_000, "is not JSON"),
    ("pretrain", '{"input_ids": "7"}', "its `input_ids` are not a list of whole numbers"),
    ("pretrain", '{"input_ids": [1, 99999]}', "are not all from 0 to"),
    ("sft", '{"messages": "hello"}', "is text, not a list of messages"),
    ("sft", '{"messages": [{"role": "user", "content": "a"}]}', "has no answer of the assistant"),
    ("dpo", '{"prompt": [], "chosen": [], "rejected": []}', "are the same"),
    ("dpo", '{"chosen": [{"role": "user", "content": "a"}]}', "has no `rejected`"),
    ("classify", '{"text": "a", "text_pair": 3, "label": 1}', "is not text but int"),
    ("pretrain", b'{"text": "alpha \xed\xa0\x80"}', "is not UTF-8"),
    ("pretrain", b'{"text": "\xff"}', "is not UTF-8"),
    ("pretrain", '{"text": "a", "n": ' + "[" * 5000 + "]" * 5000 + "}", "is not JSON"),
    ("pretrain", '{"text": ' + "9" * 5000 + "}", "is not JSON"),
    ("pretrain", '{"text": {"text": "alpha"}}', "is not text but dict"),
    ("dpo", '{"prompt": "a", "chosen": "b", "rejected": 7}', "its `rejected` is not text but int"),
    ("dpo", '{"prompt": [], "chosen": [{"role": "assistant", "content": "a"}], "rejected": 7}',
     "its `prompt` is empty"),
    ("dpo", '{"prompt": 3, "chosen": [], "rejected": []}', "are the same"),
    ("dpo", '{"prompt": "a", "chosen": [1], "rejected": [2]}', "`chosen[1]` is not a message"),
    ("dpo", '{"prompt": [1], "chosen": [1], "rejected": [2]}', "`prompt[1]` is not a message"),
    ("sft", '{"messages": [{"role": "user", "content": "a"}, 3]}', "`messages[2]` is no"),
    ("sequence", '{"items": [1, 256]}', "item 256 is beyond the model's 256 items"),
    ("sequence", json.dumps({"items": [1, 10**4000]}), "has an item above"),
    ("sequence", '{"items": [1, ' + "9" * 5000 + "]}", "is not JSON"),
    ("sequence", '{"items": [1, true]}', "has no `items`"),
    ("classify", '{"text": "a", "label": []}', "neither text nor a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "line", "message"), BAD)
def test_a_bad_record_is_counted_and_named_or_fatal(
    task: str, line: str | bytes, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    file = tmp_path / "data.jsonl"
    content = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(json.dumps(GOOD[task]).encode() + b"\n" + content + b"\n")
    statistics = prepared(recipe_of(task, str(file)), tokenizer).statistics
    assert statistics["bad_records"] == 1
    assert statistics["examples"][0].startswith(f"{file}:2: ")
    assert message in statistics["examples"][0]
    with pytest.raises(DataError) as caught:
        prepared(recipe_of(task, str(file), data__on_error="fail"), tokenizer)
    assert message in caught.value.message
    assert str(caught.value.where) == f"{file}:2"


GOOD_GZ = gzip.compress(b'{"text": "alpha"}\n' * 9999)


def _parquet(text: bytes) -> bytes:
    """A table whose one text is not UTF-8."""
    bad = pa.array([text], pa.binary()).view(pa.string())
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": bad}), stream)
    return stream.getvalue()


HALF_PAIR = _parquet(b"alpha \xed\xa0\x80")
FILES = [
    ("latin.txt", "äöü".encode("latin-1"), "latin.txt: can't be read as UTF-8 text"),
    ("latin.jsonl", '{"text": "ä"}\n'.encode("latin-1"), "latin.jsonl:1: is not UTF-8"),
    ("latin.csv", "text\nalpha\nä\n".encode("latin-1"), "latin.csv:3: is not UTF-8"),
    ("short.csv", b"text,id\nalpha,1\nbeta\n", "short.csv:3: has 1 fields, and the first line"),
    ("quote.csv", b'text\nalpha\n"a"b\n', "quote.csv:3: is not CSV"),
    ("cut.jsonl.gz", GOOD_GZ[:-20], "cut.jsonl.gz: can't be read"),
    ("cut.txt.gz", GOOD_GZ[:-20], "cut.txt.gz: can't be read"),
    ("no.jsonl.zst", b"this is none", "no.jsonl.zst: can't be read"),
    ("no.csv.xz", b"this is none", "no.csv.xz: can't be read"),
    ("no.parquet", b"PAR1 this is none", "no.parquet: can't be read"),
    ("no.arrow", b"this is none", "no.arrow: can't be read"),
    ("no.json", b'{"text": ', "no.json: can't be read"),
    ("header.csv", b'te"xt,"a"b"\nalpha,1\n', "header.csv:1: its first line"),
    ("half.parquet", HALF_PAIR, "half.parquet: can't be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[f[0] for f in FILES])
def test_a_file_that_can_not_be_read_is_named_and_the_others_are_read(
    name: str, content: bytes, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zz.txt").write_text("omega")
    (tmp_path / "data" / name).write_bytes(content)
    found = prepared(recipe_of("pretrain", str(tmp_path / "data")), tokenizer)
    assert found.statistics["bad_records"] == 1
    assert message in found.statistics["examples"][0]
    texts = [tokenizer.decode(found.train[i]["input_ids"]) for i in range(len(found.train))]
    assert any("omega" in text for text in texts)


def test_nothing_good_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("{}\n")
    with pytest.raises(DataError, match="no documents"):
        prepared(recipe_of("pretrain", str(file)), tokenizer)


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
    texts = documents(60)
    settings = {"data__shards": 3, "data__shard_by": "hash", "data__sequence_length": 128}
    few = write_lines(tmp_path / "few.jsonl", [{"text": t} for t in texts[:40]])
    many = write_lines(tmp_path / "many.jsonl", [{"text": t} for t in reversed(texts)])
    first = prepared(recipe_of("pretrain", str(few), **settings), tokenizer)
    second = prepared(recipe_of("pretrain", str(many), **settings), tokenizer)
    shards = [_texts(first, tokenizer, shard) for shard in range(3)]
    assert sorted(t for shard in shards for t in shard) == sorted(texts[:40])
    for shard, found in enumerate(shards):
        assert found <= _texts(second, tokenizer, shard)


def test_range_shards_are_contiguous(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = documents(30)
    file = write_lines(tmp_path / "data.jsonl", [{"text": t} for t in texts])
    recipe = recipe_of("pretrain", str(file), data__shards=3, data__sequence_length=128)
    found = prepared(recipe, tokenizer)
    assert [_texts(found, tokenizer, s) for s in range(3)] == [
        set(texts[start : start + 10]) for start in (0, 10, 20)
    ]


def test_duplicates_are_counted_and_left_out_when_asked(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = documents(10)
    file = write_lines(tmp_path / "data.jsonl", [{"text": t} for t in [*texts, *texts[:4]]])
    kept = prepared(recipe_of("pretrain", str(file)), tokenizer).statistics["train"]
    dropped = prepared(recipe_of("pretrain", str(file), data__deduplicate="true"), tokenizer)
    assert kept["duplicates"] == 4
    assert kept["shards"][0]["documents"] == 14
    assert dropped.statistics["train"]["shards"][0]["documents"] == 10


def test_what_identifies_a_record_is_its_key_or_all_of_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    records = [
        {"text": "alpha", "text_pair": pair, "label": "greek", "id": number}
        for pair, number in (("beta", 1), ("gamma", 2), ("beta", 1), ("delta", 2))
    ]
    file = write_lines(tmp_path / "data.jsonl", [*records, {"text": "a", "label": "b"}])
    whole = prepared(recipe_of("classify", str(file)), tokenizer).statistics
    assert (whole["train"]["duplicates"], whole["bad_records"]) == (1, 0)
    by_key = prepared(recipe_of("classify", str(file), data__key_field="id"), tokenizer).statistics
    assert (by_key["train"]["duplicates"], by_key["bad_records"]) == (2, 1)
    assert "has no `id` (data.key_field)" in by_key["examples"][0]


def test_the_held_out_documents_stay_held_out_whatever_is_added(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = documents(80)
    held = []
    for count in (40, 80):
        file = write_lines(tmp_path / f"{count}.jsonl", [{"text": t} for t in texts[:count]])
        recipe = recipe_of("pretrain", str(file), data__eval=0.3, data__packing="false")
        found = prepared(recipe, tokenizer)
        assert found.eval is not None
        held.append({tuple(found.eval[i]["input_ids"]) for i in range(len(found.eval))})
    assert held[0] < held[1]
    assert 5 < len(held[0]) < 20


def test_weights_say_how_often_an_epoch_shows_a_source(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = documents(30)
    for name, part in (("a", texts[:10]), ("b", texts[10:20]), ("c", texts[20:])):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": t} for t in part])
    train = [
        {"path": str(tmp_path / "a.jsonl"), "weight": 2},
        {"path": str(tmp_path / "b.jsonl"), "weight": 0.5},
        str(tmp_path / "c.jsonl"),
    ]
    settings = {"data__packing": "false", "data__sequence_length": 128}
    found = prepared(recipe_of("pretrain", train, **settings), tokenizer)
    seen = [tuple(found.train[i]["input_ids"]) for i in range(len(found.train))]
    assert len(seen) == 2 * 10 + 5 + 10
    counts = sorted(seen.count(sample) for sample in set(seen))
    assert counts == [1] * 15 + [2] * 10


def _forty_five(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Recipe, Encoder]:
    """A recipe for so many documents, and its encoder."""
    file = write_lines(folder / "data.jsonl", [{"text": t} for t in documents(45)])
    recipe = recipe_of("pretrain", str(file))
    return recipe, task_of(recipe).encoder(recipe, tokenizer)


def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_parts, "_PART", 10)
    recipe, encoder = _forty_five(tmp_path, tokenizer)
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
    assert encoded[:4] == [10, 10, 10, 0]
    before = len(encoded)
    found = prepare(recipe, encoder, tokenizer)
    assert encoded[before:] == [10, 5]  # the first three parts were written
    assert found.statistics["train"]["documents"] == 45
    assert not (found.folder / "parts").exists()
    prepare(recipe, encoder, tokenizer)
    assert encoded[before:] == [10, 5]


def test_parts_are_bounded_by_what_their_records_hold(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, encoder = _forty_five(tmp_path, tokenizer)
    whole = prepare(recipe, encoder, tokenizer)
    monkeypatch.setattr(encode_parts, "_PART_SIZE", 2000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    sizes: list[int] = []
    original = type(encoder).encode

    def encode(self: Any, records: list[dict[str, Any]]) -> Any:
        sizes.append(sum(len(record["text"]) for record in records[:-1]))
        return original(self, records)

    monkeypatch.setattr(type(encoder), "encode", encode)
    in_parts = prepare(recipe, encoder, tokenizer)
    assert len(sizes) > 2
    assert max(sizes) < 2000
    assert in_parts.identity == whole.identity


def test_tokens_stay_on_disk_until_they_are_written(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_parts, "_PART", 10)
    recipe, encoder = _forty_five(tmp_path, tokenizer)
    problems = BadRecords(fatal=True)
    found, _ = encode_parts.encode(
        recipe, "train", encoder, tmp_path, problems, lambda detail: None
    )
    some = found.take(np.array([40, 3, 17]))
    for column in some.columns.values():
        assert isinstance(column.values, np.memmap)
    texts = [tokenizer.decode(some.columns["input_ids"][i][:-1]) for i in range(3)]
    assert texts == [documents(45)[i] for i in (40, 3, 17)]


def test_damage_is_found(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_lines(tmp_path / "data.jsonl", [{"text": t} for t in documents(30)])
    recipe = recipe_of("pretrain", str(file))
    found = prepared(recipe, tokenizer)
    assert damaged_shards(found) == []
    shard = found.folder / "train-00000-of-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert damaged_shards(found) == [shard.name]
    shard.write_bytes(content[:-8])
    with pytest.raises(DataError, match="is damaged"):
        prepared(recipe, tokenizer)


def test_only_the_answers_of_a_chat_are_learnt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    messages = [
        {"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"},
        {"role": "user", "content": "gamma"}, {"role": "assistant", "content": "delta"},
    ]  # fmt: skip
    file = write_lines(tmp_path / "data.jsonl", [{"messages": messages}])
    recipe = recipe_of("sft", str(file), data__sequence_length=128)
    sample = packed_sample(prepared(recipe, tokenizer).train[0], 128, 0)
    learnt = sample["input_ids"][sample["labels"] != -100]
    assert tokenizer.decode(learnt) == "beta\ndelta\n"
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        prepared(recipe, tokenizer)


def test_a_folder_of_images_has_its_folders_as_labels(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (9, 7), number).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"\x89PNG no more")
    recipe = recipe_of("vision", str(tmp_path / "images"))
    found = prepared(recipe, tokenizer)
    assert found.labels == ["cat", "dog"]
    assert len(found.train) == 6
    assert "broken.png" in found.statistics["examples"][0]
