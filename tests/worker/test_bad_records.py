"""No record, whatever it is, ends a preparation that skips bad ones."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast

from dslm.worker.data.encode_parts import Shaper, _encode_part, _write_part
from dslm.worker.data.records import BadRecords, Record
from dslm.worker.data.tokenizer import texts_in
from dslm.worker.tasks import task_of
from tests.worker.preparing import CHAT, prepared, recipe_of

pytestmark = pytest.mark.usefixtures("cache")

GOOD: dict[str, dict[str, Any]] = {
    "pretrain": {"text": "alpha beta"},
    "mlm": {"text": "alpha beta"},
    "sft": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "dpo": {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    },
    "kto": {"prompt": "alpha", "completion": "beta", "label": True},
    "reward": {"prompt": "alpha", "chosen": "beta", "rejected": "gamma"},
    "seq2seq": {"prompt": "alpha", "completion": "beta"},
    "classify": {"text": "alpha beta", "text_pair": "gamma", "label": "greek"},
    "sequence": {"items": [1, 2, 3]},
    "vision": {"image": b"", "label": "one"},
}
_TEXT = st.text(max_size=6) | st.sampled_from(["", "alpha", "\x00", "\ud800", "user", "assistant"])
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.just(10**4000)
    | st.floats()
    | _TEXT
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_TEXT | st.just("role") | st.just("content"), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def _records(draw: st.DrawFn, task: str) -> dict[str, Any]:
    """A good record with something else at some place, or a field more or less."""
    record = json.loads(json.dumps(GOOD[task], default=lambda value: "image"))
    field = draw(st.sampled_from(sorted(record)))
    match draw(st.sampled_from(["replace", "remove", "add", "inside"])):
        case "replace":
            record[field] = draw(_VALUES)
        case "remove":
            del record[field]
        case "add":
            record[draw(_TEXT)] = draw(_VALUES)
        case "inside" if isinstance(record[field], list):
            record[field][0] = draw(_VALUES)
    return dict(record)


@pytest.mark.parametrize("task", GOOD)
def test_whatever_a_record_holds_the_good_ones_beside_it_are_prepared(
    task: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    recipe = recipe_of(task, str(tmp_path))
    kind = task_of(recipe)
    good = {**GOOD[task], "image": _png(4, 4)} if task == "vision" else GOOD[task]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_records(task), min_size=1, max_size=4))
    def hold(bad: list[dict[str, Any]]) -> None:
        encoder = kind.encoder(recipe, tokenizer if kind.tokenizer else None)
        values = [good, *bad, good]
        records = [Record(f"file:{number}", value) for number, value in enumerate(values)]
        part = tmp_path / "part.npz"
        part.unlink(missing_ok=True)
        made = _encode_part(encoder, part, records, Shaper(recipe, "train"))
        assert made is not None
        encoded = made.documents
        assert len(encoded) == len(records)
        assert not isinstance(encoded[0], str)
        assert not isinstance(encoded[-1], str)
        _write_part(recipe, part, records, made)
        with np.load(part) as stored:
            said = json.loads(str(stored["facts"]))["problems"]
            assert len(stored["keys"]) + len(said) == len(records)
        for value in values:
            list(texts_in(value))

    hold()


def _png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "png")
    return stream.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _cut_jpeg() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "jpeg")
    return stream.getvalue()[:-600]


IMAGES = {
    "a bomb": (_bomb(60_000, 60_000), "image"),
    "a large one": (_bomb(20_000, 6_000), "too large"),
    "short rows": (_bomb(300, 300), "is not an image"),
    "a cut JPEG": (_cut_jpeg(), "is not an image"),
    "a cut PNG": (_png(200, 200)[:-30], "is not an image"),
    "text": (b"this is no image", "is not an image"),
    "nothing": (b"", "is not an image"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_no_rank_could_decode_is_left_out(name: str, tmp_path: Path) -> None:
    content, message = IMAGES[name]
    for label in ("one", "two"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes(_png(8, 8))
    (tmp_path / "one" / "bad.png").write_bytes(content)
    found = prepared(recipe_of("vision", str(tmp_path)), None).statistics
    assert found["bad_records"] == 1
    assert message in found["examples"][0]
    assert "bad.png" in found["examples"][0]
    assert found["train"]["documents"] == 2


def test_an_item_of_five_thousand_digits_is_no_item(tmp_path: Path) -> None:
    file = tmp_path / "items.txt"
    file.write_text("1 2 3\n4 " + "9" * 5000 + "\n5 6\n")
    found = prepared(recipe_of("sequence", str(file)), None).statistics
    assert found["bad_records"] == 1
    assert f"{file}:2" in found["examples"][0]


def test_what_is_said_of_a_record_is_cut_to_what_a_person_reads() -> None:
    problems = BadRecords(fatal=False)
    problems.add("file:1", "x" * 100_000)
    assert len(problems.examples[0]) < 400
