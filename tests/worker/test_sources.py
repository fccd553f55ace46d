"""Every kind of source is read: formats, compression, patterns, the Hub, ids, chats, pairs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from dslm.errors import DataError
from tests.conftest import Dslm
from tests.worker.preparing import CHAT, documents, prepared, recipe_of, write_lines

pytestmark = pytest.mark.usefixtures("cache")
TEXTS = documents(30)


def _jsonl(file: Path) -> None:
    write_lines(file, [{"text": text} for text in TEXTS])


def _arrow(file: Path) -> None:
    table = datasets.Dataset.from_dict({"text": TEXTS}).data.table
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def _packed(write: Callable[[Path], Any], compression: str) -> Callable[[Path], None]:
    def written(file: Path) -> None:
        write(file)
        content = file.read_bytes()
        if compression == "gz":
            file.write_bytes(gzip.compress(content))
        else:
            with pa.output_stream(str(file), compression="zstd") as out:
                out.write(content)

    return written


def _as_csv(file: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).to_csv(file, index=False)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "jsonl": _jsonl,
    "jsonl.gz": _packed(_jsonl, "gz"),
    "jsonl.zst": _packed(_jsonl, "zst"),
    "json": lambda file: file.write_text(json.dumps([{"text": text} for text in TEXTS])),
    "csv": _as_csv,
    "csv.gz": _packed(_as_csv, "gz"),
    "parquet": lambda file: datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(file),
    "arrow": _arrow,
}


def _samples(train: Any, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    found = prepared(recipe_of("pretrain", train), tokenizer)
    assert found.statistics["bad_records"] == 0
    return [found.train[index]["input_ids"].tolist() for index in range(len(found.train))]


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_table_gives_the_same_samples(
    suffix: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    _jsonl(tmp_path / "plain.jsonl")
    WRITERS[suffix](tmp_path / f"data.{suffix}")
    expected = _samples(str(tmp_path / "plain.jsonl"), tokenizer)
    assert _samples(str(tmp_path / f"data.{suffix}"), tokenizer) == expected


@pytest.mark.parametrize("suffix", ["txt", "md", "py", "rs", "txt.gz", "txt.zst"])
def test_a_text_file_is_a_document(
    suffix: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    content = "alpha beta\ngamma\n"
    file = tmp_path / f"a.{suffix}"
    write: Callable[[Path], Any] = lambda path: path.write_text(content)  # noqa: E731
    compressed = suffix.partition(".")[2]
    (_packed(write, compressed) if compressed else write)(file)
    (sample,) = _samples(str(file), tokenizer)
    assert tokenizer.decode(sample, skip_special_tokens=True) == content


def test_a_pattern_a_folder_and_a_list_name_files(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("deep/a.txt", "deep/er/b.txt", "deep/c.unknown"):
        (tmp_path / name).write_text(f"alpha {name}")
    by_folder = _samples(str(tmp_path / "deep"), tokenizer)
    assert by_folder == _samples(str(tmp_path / "**" / "*.txt"), tokenizer)
    files = [str(tmp_path / "deep/a.txt"), str(tmp_path / "deep/er/b.txt")]
    assert by_folder == _samples(files, tokenizer)


def test_the_hub_offline_is_a_clear_error(
    dslm: Dslm, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    done = dslm("data", "show", "quickstart", "-s", "data.train=org/name", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "the Hub data set `org/name` can't be read" in done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "Traceback" not in done.stderr


def test_ids_are_taken_as_they_are(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_lines(tmp_path / "ids.jsonl", [{"input_ids": [5, 6, 7]}])
    assert _samples(str(file), tokenizer) == [[5, 6, 7]]


def test_items_come_from_records_or_from_lines(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_lines(tmp_path / "a.jsonl", [{"items": [3, 1, 4]}])
    (tmp_path / "b.txt").write_text("3 1 4\n\n3,1,4\n3 x\n")
    found = prepared(recipe_of("sequence", str(tmp_path), data__packing="false"), tokenizer)
    assert [found.train[n]["input_ids"].tolist() for n in range(3)] == [[3, 1, 4]] * 3
    assert "b.txt:4: is not a line of item ids" in found.statistics["examples"][0]


def test_preferences_are_texts_or_chats(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHAT
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", "beta"), ("rejected", "gamma"))
    }
    file = write_lines(
        tmp_path / "data.jsonl",
        [
            {"prompt": "alpha ", "chosen": "beta", "rejected": "gamma"},
            {"prompt": [{"role": "user", "content": "alpha"}], **answers},
        ],
    )
    found = prepared(recipe_of("dpo", str(file), data__sequence_length=64), tokenizer).train
    shown = [
        [tokenizer.decode(found[n][f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")]
        for n in range(2)
    ]
    end = tokenizer.eos_token
    assert shown[0] == ["alpha ", f"beta{end}", f"gamma{end}"]
    assert shown[1] == ["<user>alpha\n<assistant>", "beta\n", "gamma\n"]


def test_nothing_there_is_an_error_that_names_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    for train, message in (
        (str(tmp_path / "*.txt"), "no file matches"),
        (str(tmp_path / "none.txt"), "there is no file or folder"),
        (str(tmp_path), "holds no file that can be read"),
    ):
        with pytest.raises(DataError, match=message):
            _samples(train, tokenizer)
