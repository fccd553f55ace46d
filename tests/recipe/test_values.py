"""Every field of the schema takes values of its own kind, and no other: all of them are walked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from dslm.errors import InputError
from dslm.recipe.load import dump_recipe, load_recipe, read_resolved
from dslm.recipe.schema import Recipe
from dslm.recipe.yaml import dump_yaml, parse_value, parse_yaml

INFINITE = [".inf", "-.inf", ".nan", "1e400", "-1e400", "1" * 400, "1" * 5000]
HUGE = ["1e300", "9223372036854775808", "1" * 30]
# what each kind of value is written as, by a class of mistakes; a field that takes none of a kind's
# right values must refuse them, too
SAMPLES: dict[str, list[str]] = {
    "flag": ["true", "false", "yes", "off"],
    "text": ["'1'", "1e", "ten"],
    "list": ["[1, 2, 3]", "[]", "[[]]"],
    "mapping": ["{a: 1}", "{}"],
    "fraction": ["0.5", "1.5"],
}


def _fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        section = next((t for t in _members(kind) if _is_section(t)), None)
        if section is None:
            yield above + name, field
        else:
            yield from _fields(section, f"{above}{name}.")


def _members(kind: Any) -> list[Any]:
    """A type and what it may be; what is in a list has no key of its own."""
    return [kind, *(() if get_origin(kind) is list else getattr(kind, "__args__", ()))]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


FIELDS = dict(_fields(Recipe))
FREE = ("training_args.x", "deepspeed.zero_optimization.x", "model.architecture.x", "environment.X")
NUMBERS = [
    key
    for key, field in FIELDS.items()
    if any(kind in str(field) for kind in ("Gt(", "Ge(", "no_flag"))
]
MAY_BE_EMPTY = ("description", "evaluation.sample")
FLAGS = [key for key, field in FIELDS.items() if "bool" in str(field.annotation)]


def _load(key: str, text: str) -> Recipe:
    # every flag goes with stage 3
    return load_recipe("quickstart", ["parallel.zero_stage=3", f"{key}={text}"]).recipe


def _refused(key: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        _load(key, text)
    failure = caught.value
    places = [failure.where, *(finding.where for finding in failure.findings)]
    assert any(str(place).startswith("--set") for place in places), failure
    assert len(failure.message) < 400


def test_the_walk_meets_the_fields() -> None:
    assert len(FIELDS) > 60
    assert len(NUMBERS) >= 30
    assert len(FLAGS) >= 10


@pytest.mark.parametrize("key", [*FIELDS, *FREE[:3]])
def test_infinity_and_nan_are_no_value_of_any_key(key: str) -> None:
    if key.startswith("environment"):
        return
    for text in INFINITE:
        _refused(key, text)
        _refused(key, f"[{text}]")
        _refused(key, f"{{a: {{b: {text}}}}}")


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_no_text_flag_list_or_mapping(key: str) -> None:
    wrong = [
        *SAMPLES["flag"],
        "'1'",
        "'0.5'",
        "inf",
        "nan",
        "[true]",
        "{a: 1}",
        "",
        *HUGE,
        "-1e300",
    ]
    if key not in ("data.train", "data.eval"):  # the held-out share may be a path, too
        wrong.append("ten")
    for text in wrong:
        if text == "" and key in ("duration.steps", "duration.epochs", "duration.tokens"):
            continue
        if text in ("'1'", "'0.5'", "inf", "nan") and key == "data.eval":
            continue
        if text == "" and _takes_nothing(key):
            continue
        if text == "{a: 1}" and key.endswith("_pattern"):  # which is a mapping of numbers
            continue
        _refused(key, text)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_negative_number_is_refused_and_zero_where_it_means_nothing(key: str) -> None:
    _refused(key, "-1")
    _refused(key, "-0.5")
    zero_is_fine = TypeAdapter(FIELDS[key].rebuild_annotation())
    try:
        zero_is_fine.validate_python(0)
    except ValidationError:
        _refused(key, "0")


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_is_no_number_text_list_or_mapping(key: str) -> None:
    for text in ("0", "1", "1.0", "'true'", "maybe", "[true]", "{}", ""):
        _refused(key, text)
    for text in ("true", "false", "yes", "off"):
        assert dict(_pairs(_load(key, text).model_dump()))[key] is (text in ("true", "yes"))


@pytest.mark.parametrize("key", FIELDS)
def test_nothing_where_something_must_be_is_refused(key: str) -> None:
    for text in ("", "null", "''", "' '", "[]", "{}"):
        try:
            recipe = _load(key, text)
        except InputError:
            continue
        # what is taken is a default, or means it: no path, name or number is made of nothing
        taken = dict(_pairs(recipe.model_dump())).get(key)
        assert taken in (None, [], {}) or key in MAY_BE_EMPTY, (key, text, taken)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5e8", 5e8),
        ("2.5E+3", 2500.0),
        ("-1e3", -1000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x10", 16),
        ("012", 12),
        ("2024-02-30", "2024-02-30"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("0x", "0x"),
        ("1e", "1e"),
        ("'1e-6'", "1e-6"),
        ("yes", True),
        ("~", None),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    found, _ = parse_value(text, "key")
    assert found == value
    assert type(found) is type(value)
    assert parse_yaml(f"key: {text}\n", "x.yaml").tree == {"key": value}
    assert parse_yaml(f"key: [{{a: {text}}}]\n", "x.yaml").tree == {"key": [{"a": value}]}
    assert parse_yaml(dump_yaml({"key": value}), "x.yaml").tree == {"key": value}


@pytest.mark.parametrize(
    "setting",
    [
        "batch.global_size=1e8",
        "batch.micro_size=1e7",
        "data.sequence_length=1e10",
        "data.shards=1e7",
        "data.workers=1e4",
        "parallel.ranks=1e7",
        "parallel.tensor=1e7",
        "lora.rank=1e7",
        "seed=4294967296",
        "watchdog.timeout=1e9",
    ],
)
def test_what_is_counted_one_by_one_has_a_bound(setting: str) -> None:
    _refused(*setting.split("=", 1))


def test_a_count_may_be_written_with_an_exponent() -> None:
    assert _load("duration.tokens", "1e9").duration.tokens == 10**9
    assert _load("optimizer.eps", "1e-6").optimizer.eps == 1e-6
    assert _load("deepspeed.zero_optimization.reduce_bucket_size", "5e8").deepspeed == {
        "zero_optimization": {"reduce_bucket_size": 5e8}
    }
    _refused("duration.steps", "1.5")


@pytest.mark.parametrize(
    "setting",
    [
        "{model_type: 5}",
        "{model_type: ''}",
        "{}",
        "null",
        "[]",
        "llama",
    ],
)
def test_an_architecture_names_its_type(setting: str) -> None:
    _refused("model.architecture", setting)


@pytest.mark.parametrize(
    "setting",
    [
        "environment.A=",
        "environment.A=''",
        "environment.A=null",
        "environment.A=~",
        'environment.A="a\\nb"',
        'environment.A="a\\0b"',
        "environment={A=B: c}",
        "environment={'': c}",
        "environment={'A B': c}",
        'environment={"A\\nB": c}',
        'environment={"A\\0": c}',
        "environment={1A: c}",
        "environment={A: [b]}",
        "environment={A: {b: c}}",
        "environment=[A]",
    ],
)
def test_a_variable_has_a_name_and_one_line(setting: str) -> None:
    _refused(*setting.split("=", 1))


def test_a_variable_is_what_was_written(tmp_path: Path) -> None:
    text = "{A: 4, B: on, C: 1.10, D: 1e-6, E: a=b, F: 012, G: '5'}"
    recipe = _load("environment", text)
    told = {"A": "4", "B": "on", "C": "1.10", "D": "1e-6", "E": "a=b", "F": "012", "G": "5"}
    assert recipe.environment == told
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert read_resolved(file) == recipe


@pytest.mark.parametrize("text", ["1e-6", "5e8", "yes", "~", "0x1F", "2024-01-01", ".inf", "", "#"])
def test_text_that_looks_like_another_value_stays_text_in_a_run(tmp_path: Path, text: str) -> None:
    recipe = load_recipe("quickstart", [f"training_args.run_name={json.dumps(text)}"]).recipe
    assert recipe.training_args == {"run_name": text}
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert read_resolved(file) == recipe


def _takes_nothing(key: str) -> bool:
    try:
        TypeAdapter(FIELDS[key].rebuild_annotation()).validate_python(None)
    except ValidationError:
        return False
    return True


def _pairs(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield above + key, value
        if isinstance(value, dict):
            yield from _pairs(value, f"{above}{key}.")
