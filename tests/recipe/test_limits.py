"""Nothing too large, too deep or no text breaks a reader: the limit that was met is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dslm.cluster.hostfile import load_hosts
from dslm.errors import ConfigError, HostfileError, InputError, RecipeError
from dslm.files import json_text
from dslm.reading import parse_json, read_json
from dslm.recipe.load import load_recipe
from tests.conftest import Dslm

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
YAML = {
    "billion laughs": (LAUGHS, "100,000 values"),
    "aliases that double": (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 40)),
        "100,000 values",
    ),
    "an alias to itself": ("deepspeed: &a {a: *a}\n", "refers to itself"),
    "an alias to its list": ("deepspeed: {a: &a [*a]}\n", "refers to itself"),
    "an alias to nothing": ("deepspeed: *a\n", "no `&a`"),
    **{
        f"{levels} levels of {kind}": (f"deepspeed:{gap}{opening * levels}", "50 levels")
        for levels in (60, 2_000, 20_000, 100_000)
        for kind, gap, opening in (
            ("lists", " ", "["),
            ("mappings", " ", "{a: "),
            ("items", "\n", "- "),
        )
    },
    "levels by indentation": (
        "deepspeed:\n" + "".join(f"{' ' * (i + 1)}a:\n" for i in range(1000)),
        "50 levels",
    ),
    "5,000 digits": (f"seed: {'1' * 5000}\n", "5,000 characters"),
    "5,000 hexadecimal digits": (f"seed: 0x{'f' * 5000}\n", "too large"),
    "a line of 5 MB": (f"description: {'x' * (5 << 20)}\n", "1 MiB"),
    "a comment of 5 MB": (f"# {'x' * (5 << 20)}\nseed: 1\n", "1 MiB"),
    "many lines": ("a:\n" * (1 << 20), "1 MiB"),
    "many values": (f"deepspeed: {{a: [{'1,' * 200_000}]}}\n", "100,000 values"),
    "a key of 5,000 letters": (f"? {'k' * 5000}\n: 1\n", "200 characters"),
    "a key that is a list": ("? [a, b]\n: 1\n", "a key must be a word"),
    "an empty key": ("'': 1\n", "without a name"),
    "a NUL": ("description: a\0b\n", "U+0000"),
    "an escaped NUL": ('description: "a\\0b"\n', "U+0000"),
    "an escape character": ('description: "\\e[31m"\n', "U+001B"),
    "half a surrogate pair": ('description: "\\ud800"\n', "YAML"),
    "a Python object": ("deepspeed: !!python/object/apply:os.system [ls]\n", "tag"),
    "a tag of one's own": ("deepspeed: !x {a: 1}\n", "tag"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "second document"),
    "many parents": (f"extends: [{', '.join(['quickstart'] * 1000)}]\n", "at most 50"),
    "a parent of 5,000 letters": (f"extends: {'q' * 5000}\n", "no preset"),
    "a parent's path of 5,000 letters": (f"extends: ./{'q' * 5000}.yaml\n", "no recipe file"),
}


@pytest.mark.parametrize("case", YAML)
def test_a_recipe_within_limits(tmp_path: Path, case: str) -> None:
    text, said = YAML[case]
    (tmp_path / "r.yaml").write_text(f"{text}")
    with pytest.raises(InputError) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert said in caught.value.message
    assert "r.yaml" in str(caught.value.where)
    assert len(f"{caught.value.message}{caught.value.where}{caught.value.hint}") < 1000


@pytest.mark.parametrize(
    "case", [case for case in YAML if "parent" not in case and "MB" not in case]
)
def test_an_override_within_limits(case: str) -> None:
    text, _ = YAML[case]
    with pytest.raises(InputError) as caught:
        load_recipe(
            "quickstart", [f"deepspeed={{x: 1}}\n{text}" if "---" in text else f"deepspeed={text}"]
        )
    assert caught.value.message
    assert len(caught.value.message) < 500


def test_a_key_of_an_override_within_limits() -> None:
    for key in (".".join("a" * 10_000), "a" * 5000, "deepspeed." + "a" * 5000, "a..b", "\x1b"):
        with pytest.raises(InputError) as caught:
            load_recipe("quickstart", [f"{key}=1"])
        assert len(f"{caught.value.message}{caught.value.where}{caught.value.hint}") < 1000


def test_a_tree_of_a_million_ancestors_is_read_once_a_file(tmp_path: Path) -> None:
    (tmp_path / "r0.yaml").write_text("extends: quickstart\nseed: 7\n")
    for i in range(1, 19):
        (tmp_path / f"r{i}.yaml").write_text(f"extends: [./r{i - 1}.yaml, ./r{i - 1}.yaml]\n")
    assert load_recipe(str(tmp_path / "r18.yaml")).recipe.seed == 7
    for i in range(19, 60):
        (tmp_path / f"r{i}.yaml").write_text(f"extends: [./r{i - 1}.yaml, ./r{i - 1}.yaml]\n")
    with pytest.raises(RecipeError, match="32 levels"):
        load_recipe(str(tmp_path / "r59.yaml"))


def test_three_thousand_wrong_keys_are_counted_and_some_are_shown(
    dslm: Dslm, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        "extends: quickstart\n" + "".join(f"optimiser_{i}: 1\n" for i in range(3000))
    )
    done = dslm("train", "r.yaml")
    assert done.returncode == 2
    assert "3,000 problems" in done.stderr
    assert "2,980 more" in done.stderr
    assert len(done.stderr) < 10_000


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "q" * 5000],
        ["train", f"./{'q' * 5000}.yaml"],
        ["train", "quickstart", "-s", f"data.train=./{'q' * 5000}"],
        ["train", "quickstart", "-s", f"data.train={'q/' * 2500}"],
        ["train", "quickstart", "-s", f"model={{init: pretrained, name: ./{'q' * 3000}}}"],
        ["train", "quickstart", "-s", "data.train=~nobody-here/x.txt"],
        ["train", "quickstart", "-o", "q" * 5000],
        ["train", "quickstart", "-H", "q" * 5000],
        ["hosts", "show", "q" * 5000],
        ["config", "--check", "q" * 5000],
        ["recipes", "show", "*"],
        ["recipes", "new", "q" * 5000],
        ["runs", "show", "q" * 5000],
    ],
    ids=lambda argv: " ".join(argv)[:40],
)
def test_a_name_that_no_file_can_have(dslm: Dslm, tmp_path: Path, argv: list[str]) -> None:
    done = dslm(*argv)
    assert done.returncode == 2, done.stderr
    assert "dslm itself" not in done.stderr
    assert len(done.stderr) < 2000
    assert not list(tmp_path.iterdir())


HOSTS = {
    "5 MB": ("w1 slots=1\n" * (1 << 19), "1 MiB"),
    "a line of 900 kB": ("w" * 900_000 + " slots=1", "not a host name"),
    "5,000 digits": (f"w1 slots={'1' * 5000}", "from 1 to"),
    "NUL": ("w1\0 slots=1", "U+0000"),
    "10,000 wrong lines": ("w1 slots=x\n" * 10_000, "10,000 lines"),
}


@pytest.mark.parametrize("case", HOSTS)
def test_a_hostfile_within_limits(tmp_path: Path, case: str) -> None:
    text, said = HOSTS[case]
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(HostfileError) as caught:
        load_hosts(str(tmp_path / "hosts"))
    assert said in caught.value.message
    assert len(caught.value.message) < 500


JSON = {
    "NaN": ('{"a": NaN}', "not JSON|not a finite|finite"),
    "Infinity": ('{"a": [-Infinity]}', "infinite"),
    "1e400": ('{\n"a": 1e400}', "infinite"),
    "5,000 digits": (f'{{"a": {"1" * 5000}}}', "5,000 characters"),
    "beyond 64 bits": (f'{{"a": {2**64}}}', "larger than"),
    "twice": ('{"a": 1, "a": 2}', "twice"),
    "NUL": ('{"a": "\\u0000"}', "U.0000"),
    "NUL in a key": ('{"a\\u0000": 1}', "U.0000"),
    "half a surrogate pair": ('{"a": "\\ud800"}', "U\\+D800"),
    "a comma": ('{"a": 1,}', "not JSON"),
    "nothing": ("", "not JSON"),
    **{f"{n} lists": ("[" * n, "50 levels") for n in (60, 2_000, 100_000)},
    **{f"{n} objects": ('{"a":' * n, "50 levels") for n in (60, 2_000, 100_000)},
    "5 MB": (f'{{"a": "{"x" * (5 << 20)}"}}', "1 MiB"),
}


@pytest.mark.parametrize("case", JSON)
def test_a_json_file_within_limits(tmp_path: Path, case: str) -> None:
    text, said = JSON[case]
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_json(tmp_path / "c.json", error=ConfigError)
    assert str(caught.value.where).startswith(str(tmp_path / "c.json"))
    assert len(caught.value.message) < 300


def test_a_constant_may_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    read = read_json(tmp_path / "c.json", error=ConfigError, constant=str)
    assert read == {"time_step_limit": [0.0, "Infinity"]}


def test_brackets_in_text_are_no_levels() -> None:
    value = {"a": "[{" * 1000 + '"', "b": [[{"c": 1.5}]], "d": -3, "e": 1e10}
    assert parse_json(json.dumps(value), error=ConfigError) == value


def test_json_for_programs_is_strict() -> None:
    infinite = float("inf")
    value = {"a": infinite, "b": [-infinite, (float("nan"), 1.5)], "c": {"d": 2}, infinite: 1}
    assert json.loads(json_text(value), parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, [None, 1.5]],
        "c": {"d": 2},
        "inf": 1,
    }
