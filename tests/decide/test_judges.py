"""Each judge alone, at both sides of its edges: all that it says stands in a file.

`pytest tests/decide/test_judges.py --update-golden` writes tests/golden/findings/judges.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from dslm.cluster.devices import cpu_device, device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks import facts, machine, settings
from dslm.decide.checks.base import Case, Problem
from dslm.decide.checks.every import CHECKS
from dslm.decide.model import model_of
from dslm.plan.strategy import Strategy
from dslm.profile.value import Profile
from dslm.recipe.load import LoadedRecipe, load_recipe
from tests.decide.cases import let_fail, make_files
from tests.decide.judged import GIVEN, Given
from tests.support.golden import GOLDEN, SameAs

NAMES = {check.name: check for check in CHECKS}
LISTED = [f"w{number}" for number in range(3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes name."""
    folder = tmp_path_factory.mktemp("judged")
    make_files(folder)
    _write_data(folder)
    _write_models(folder)
    _write_tokenizers(folder)
    return folder


@pytest.fixture
def folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(files)
    monkeypatch.setenv("HOME", str(files))
    return files


def _write_data(folder: Path) -> None:
    texts = {
        "cut.jsonl": '{"prompt": \n', "number.jsonl": "3\n", "marked.jsonl":
        '\ufeff{"prompt": "a", "completion": "b"}\n', "deep.jsonl": "[" * 100_000,
        "turned.jsonl": '{"prompt": [{"role": "user", "content": "a"}], "completion": '
        '[{"role": "assistant", "content": "b"}]}\n',
        "long.jsonl": json.dumps({"prompt": "a" * 2**20}) + "\n",
        "answered.jsonl": '{"prompt": "2+2=", "answer": "4"}\n',
        "star.py": "from os.path import *\n", "nothing.py": "", "nul.py": "\0",
        "a:b.py": "def worth(completions): ...\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    with (folder / "rewards.py").open("a") as stream:
        stream.write(
            "class Kind: ...\nfrom os import path as renamed, sep as original\nimport os\n"
            "from os import linesep\nimported = linesep\npair: int = 1\nonly: int\n"
            "try:\n    from nowhere import tried\nexcept ImportError:\n    tried = worth\n"
            "if os.sep:\n    def chosen(completions): ...\n"
            "def outer():\n    def inner(completions): ...\n"
        )
    (folder / "picture.png").write_bytes(b"\x89PNG")
    with gzip.open(folder / "zipped.jsonl.gz", "wt") as stream:
        stream.write('{"prompt": "a", "completion": "b"}\n')
    for name, kept in (("both", ("text.txt", "records.jsonl")), ("mixed", ("pairs.jsonl",)),
                       ("mixed-asked", ("asked.jsonl", "text.txt"))):  # fmt: skip
        (folder / name).mkdir()
        for file in kept:
            shutil.copy(folder / file, folder / name)
    (folder / "mixed" / "a.csv").write_text("prompt,completion\na,b\n")


def _write_models(folder: Path) -> None:
    sizes = {"model_type": "llama", "hidden_size": -8, "num_attention_heads": 4,
             "num_key_value_heads": 3, "num_hidden_layers": "two"}  # fmt: skip
    for name, config in (("odd", sizes), ("bert", {"model_type": "bert"}),
                         ("hollow2", {"model_type": "llama", "vocab_size": 60})):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    for name, files in (
        ("sharded", ("model.safetensors.index.json",)), ("pickled", ("pytorch_model.bin",)),
        ("torch", ("model.bin",)), ("both", ("adapter_model.safetensors", "model.safetensors")),
        ("adapter-of-nobody", ("adapter_model.safetensors", "adapter_config.json")),
    ):  # fmt: skip
        (folder / name).mkdir(exist_ok=True)
        shutil.copy(folder / "llama" / "config.json", folder / name)
        for file in files:
            (folder / name / file).touch()


def _write_tokenizers(folder: Path) -> None:
    words = {f"w{number}": number for number in range(60)}
    masked = {"tokenizer_class": "TokenizersBackend", "mask_token": "[MASK]"}
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    plain = {"model": {"vocab": words}}
    added = {"model": {"vocab": words}, "added_tokens": [{"id": 60}, {"id": 61}, {"id": 5}, "x"]}
    for name, tokenizer, config in (
        ("listed", {"model": {"vocab": LISTED}}, {}),
        ("gapped", {"model": {"vocab": {"a": 10, "b": 11}}, "added_tokens": [{"id": 0}]}, {}),
        ("added", added, {}), ("own", added, {}),
        ("unsaid", {"model": {"vocab": "many"}}, {}), ("many", plain, {}),
        ("empty", {"model": {"vocab": {}}}, {}),
        ("masked", plain, masked), ("mapped", plain, fast),
        ("backend", plain, {"tokenizer_class": "TokenizersBackend"}),
        ("own-class", plain, {"tokenizer_class": "BertTokenizer"}), ("jinja", plain, fast),
        ("templated", plain, {"chat_template": "x"}), ("additional", plain, fast),
    ):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    own = {"model_type": "llama", "vocab_size": 60}
    (folder / "own" / "config.json").write_text(json.dumps(own))
    many = {"model": {"vocab": {f"w{number}": number for number in range(2048)}}}
    (folder / "many" / "tokenizer.json").write_text(json.dumps(many))
    mapped = json.dumps({"mask_token": "[MASK]"})
    (folder / "mapped" / "special_tokens_map.json").write_text(mapped)
    (folder / "jinja" / "chat_template.jinja").touch()
    (folder / "additional" / "additional_chat_templates").mkdir()
    (folder / "listed" / "tokenizer_config.json").unlink()
    for name, file in (("broken", "tokenizer.json"), ("broken-config", "tokenizer_config.json"),
                       ("sentences", "spiece.model")):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / file).write_text("[1]")


def profile(given: Given) -> Profile | None:
    """What a trace found, as far as judges look at it."""
    if given.apart is None:
        return None
    return Profile(
        model_type="llama", parameters=(), layers=2, hidden_size=8, vocab_size=8, heads=2,
        kv_heads=2, max_positions=given.positions, tied=False, attention="sdpa", element=4,
        passes={}, proofs=(), versions={}, apart=given.apart,
    )  # fmt: skip


def strategy(given: Given) -> Strategy | None:
    """What was planned."""
    if given.plan is None:
        return None
    plain = Strategy(
        zero_stage=2, offload="none", micro_batch_size=4, gradient_accumulation_steps=1,
        activation_checkpointing=False, tensor_parallel=1, sequence_parallel=1,
        data_parallel_size=2,
    )  # fmt: skip
    return replace(plain, **given.plan)


@cache
def _loaded(recipe: str, sets: str) -> LoadedRecipe:
    return load_recipe(recipe, tuple(sets.split()))


def case_of(given: Given) -> Case:
    """The subject of a judge."""
    loaded = _loaded(given.recipe, given.sets)
    source = model_of(loaded)
    device = cpu_device(2**34) if given.device == "cpu" else device_named(given.device)
    hosts = tuple(Host(f"w{number}", slots) for number, slots in enumerate(given.hosts))
    return Case(
        recipe=loaded.recipe,
        source=source,
        kind=facts.model_type(str(source.architecture.get("model_type"))),
        cluster=Cluster(hosts=hosts, device=device),
        here=given.here,
        profile=profile(given),
        strategy=strategy(given),
    )


# wherever the tests run
TRACKERS = {package for package, _ in settings._TRACKERS.values()}


def surround(given: Given, patch: pytest.MonkeyPatch) -> None:
    """Let be installed what a row says; of all trackers, one."""
    for name in TRACKERS:
        patch.setitem(sys.modules, name, None)
    for name in ("tensorboard", *given.installed):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        patch.setitem(sys.modules, name, module)
    for name in given.missing:
        patch.setitem(sys.modules, name, None)
    if given.other_versions:
        patch.setattr(
            facts, "complete",
            lambda package="transformers": package not in given.other_versions,
        )  # fmt: skip
    if given.releases:
        patch.setattr("dslm.cluster.wrong_versions.installed_release", dict(given.releases).get)


def told(given: Given, problems: Sequence[Problem]) -> str:
    """What was asked, and all that was said of it."""
    lines = [f"{given}{'' if problems else ': ok'}"]
    for one in problems:
        lines.append(f"  {one.error.__name__} {one.key}: {one.message}")
        lines += [f"    {one.hint}"] if one.hint else []
    return "\n".join(lines) + "\n"


def file_of(name: str) -> str:
    """The file of what a check says."""
    return re.sub(r"[^\w ]", "", name).replace(" ", "-") + ".txt"


def test_each_judge_is_asked_at_its_edges_and_has_a_file() -> None:
    assert GIVEN.keys() == NAMES.keys()
    files = {file.name for file in (GOLDEN / "findings" / "judges").iterdir()}
    assert files == {file_of(name) for name in GIVEN}
    assert min(len(rows) for rows in GIVEN.values()) > 1


@pytest.mark.parametrize("name", GIVEN)
def test_all_that_a_judge_says(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, same_as: SameAs
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda _: "libaio.so.1")
    monkeypatch.setattr(machine, "_header", lambda _: True)
    let_fail(monkeypatch)
    text = ""
    for given in GIVEN[name]:
        with monkeypatch.context() as patch:
            surround(given, patch)
            text += told(given, list(NAMES[name].judge(case_of(given))))
    same_as(f"findings/judges/{file_of(name)}", text.replace(str(folder), "FOLDER"))
