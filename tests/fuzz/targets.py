"""What is fuzzed: an input and the function of dslm that has to live with it.

A target fails by any exception that isn't a `DslmError` (or, on the control channel, a
`Malformed`): dslm would say that it itself has failed.
"""

from __future__ import annotations

import copy
import json
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dslm.cluster.hostfile import parse_hostfile, parse_inline, render_hostfile
from dslm.codec import Malformed
from dslm.errors import DslmError
from dslm.launch.control import Control
from dslm.presets import shipped_folder
from dslm.recipe.formats import Kind, formed
from dslm.recipe.load import dump_recipe, load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import as_record, tail_events
from dslm.run.manifest import read_manifest
from dslm.run.summary import find_runs, summarize
from dslm.run.words import REPORTS, WordReader
from dslm.zero.keys import Key, table
from dslm.zero.lint import lint
from dslm.zero.read import read_config
from tests.fuzz.mangle import JSON_VALUES, mangled, mangled_bytes
from tests.zero.mutations import bases

_JSON = (
    "{", "}", "[", "]", ",", ":", '"', "null", "true", "NaN", "-Infinity", "1e400", "1e-400", "\\",
    "\\ud800", "\x00", "[" * 3000, '{"a":' * 3000, "9" * 5000, "-0", "0x1", "// x", "\ufeff", "\n",
    "0", "-1", '""', "{}", "[]", "1e9", "99999999999999999999999", "\u2028",
)  # fmt: skip
_YAML = (
    "&a", "*a", "<<: *a", "!!python/object/apply:os.system [id]", "!!binary x", "!!set {a}", "!x y",
    "? ", "- ", "---", "...", "%YAML 9.9", "\t", "|", ">", "{", "}", "[", "]", ".inf", "-.inf",
    ".nan", "0x_", "1_0", "2001-99-99", "2001-01-01 99:99:99", "190:20:30", "~", "null", "yes",
    "1e-6", "5e8", "9" * 5000, "[" * 3000, "\x00", "\ufeff", "'", '"', "#", ": ", "\n", "\n  ",
    "extends: quickstart\n", "extends: [a, b]\n", "environment: {A: b}\n", "deepspeed: {x: 1}\n",
    "@", "`", "=", "\x85", "\u2028", "\r", "data: {train: [1]}\n", "stage",
    "seed: 99999999999999\n",
)  # fmt: skip
_HOSTS = (
    "slots=",
    "=",
    "#",
    ":",
    ",",
    "[",
    "]",
    "::1",
    "@",
    "-",
    "9" * 5000,
    "\x00",
    "\n",
    " ",
    "%",
)
_RUN_EVENTS = "\n".join(
    json.dumps(event)
    for event in (
        {"time": 1.0, "event": "start", "attempt": 1, "steps": 10},
        {"time": 2.0, "event": "step", "attempt": 1, "step": 1, "loss": 2.0},
        {"time": 2.5, "event": "eval", "attempt": 1, "step": 1, "loss": 2.0},
        {"time": 3.0, "event": "error", "attempt": 1, "message": "x", "again": True},
        {"time": 4.0, "event": "restart", "attempt": 1, "cause": "x", "step": 1},
        {"time": 5.0, "event": "resume", "attempt": 2, "step": 1},
        {"time": 6.0, "event": "end", "attempt": 2, "status": "done", "step": 10},
    )
)
_WORDS = "\n".join(
    f"{name} {json.dumps(fields)}"
    for name, fields in (
        (
            "hello",
            {
                "rank": 0, "pid": 4, "start_time": 2, "parent_pid": 1, "parent_start_time": 1,
                "kills_before": None,
            },
        ),
        ("beat", {"progress": 1, "phase": "data", "step": 0, "cpu_seconds": 1.0}),
        ("event", {"event": "step", "time": 1.0, "attempt": 1, "step": 3}),
        ("end", {"exit_code": 1, "ended": 1.0, "report": {"chain": [{"type": "ValueError"}]}}),
    )
)  # fmt: skip
_CHATS = (
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "a", "completion": "b"},
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    },
)

GOOD_CONFIGS = bases()


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed, with what."""

    name: str
    inputs: st.SearchStrategy[Any]
    run: Callable[[Any], None]
    cost: int = 1  # how many times fewer inputs it gets, since each takes longer


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dslm-fuzz-") as name:
        yield Path(name)


def _recipe_text(text: str) -> None:
    with _folder() as folder:
        file = folder / "recipe.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        loaded = load_recipe(str(file))
        # what is accepted can be written down and read again
        (folder / "again.yaml").write_text(dump_recipe(loaded.recipe))
        load_recipe(str(folder / "again.yaml"))


def _recipe_tree(tree: dict[str, Any]) -> None:
    _recipe_text(json.dumps(tree))  # which is YAML, too


def _override(text: str) -> None:
    load_recipe("quickstart", [text])


def _hostfile(text: str) -> None:
    hosts = parse_hostfile(text)
    assert parse_hostfile(render_hostfile(hosts)) == hosts
    with suppress(DslmError):
        parse_inline(text)


def _config_text(content: bytes) -> None:
    with _folder() as folder:
        file = folder / "ds_config.json"
        file.write_bytes(content)
        config = read_config(file)
    for finding in lint(config.values, file=file, lines=config.lines):
        assert len(str(finding.message)) < 500, finding


def _config(config: dict[str, Any]) -> None:
    for finding in lint(config):
        assert len(finding.message) < 500, finding


def _events(content: bytes) -> None:
    with _folder() as folder:
        run = RunDirectory(folder)
        run.events.write_bytes(content)
        tail = tail_events(run.events)
        json.dumps(summarize(run).document(), allow_nan=False)
    assert 0 <= tail.offset <= len(content)
    json.dumps([as_record(event) for event in tail.events], allow_nan=False)


def _manifest(content: bytes) -> None:
    with _folder() as folder:
        run = RunDirectory(folder / "run")
        run.path.mkdir()
        run.manifest.write_bytes(content)
        assert len(find_runs(folder)) == 1
        read_manifest(run)


def _words(content: bytes) -> None:
    reader = WordReader(REPORTS)
    half = len(content) // 2
    for part in (content[:half], content[half:]):
        list(reader.feed(part))


def _channel(inputs: tuple[bool, bytes]) -> None:
    """The port itself: whatever a stranger or a rank sends, the supervisor goes on."""
    has_token, content = inputs
    with Control([("localhost", 2)]) as control:
        address = control.address()
        token = address.token if has_token else secrets.token_urlsafe(24)
        with socket.create_connection((address.addresses[0], address.port), timeout=5) as stranger:
            with suppress(OSError):
                stranger.sendall(token.encode() + b"\n" + content)
            for _ in range(3):
                control.poll(0.002)
        control.poll(0.002)
        assert has_token or not control.ranks


@cache
def _encoders() -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from dslm.worker.tasks.dpo import PreferenceEncoder
    from dslm.worker.tasks.sft import AnswerEncoder

    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2, "</s>": 3}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="?", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    recipe = load_recipe("quickstart").recipe
    return AnswerEncoder(recipe, tokenizer), PreferenceEncoder(recipe, tokenizer)


def _records(records: list[dict[str, Any]]) -> None:
    from dslm.worker.data.encode_parts import _encode

    kinds: tuple[Kind, ...] = ("answers", "preferences")
    for encoder, kind in zip(_encoders(), kinds, strict=True):
        shaped = [formed(record, kind)[1] for record in records]
        values = [value for value in shaped if not isinstance(value, str)]
        found = _encode(encoder, values)
        assert len(found) == len(values)
        assert all(isinstance(one, str | dict) for one in found)


@st.composite
def _trees(draw: st.DrawFn) -> dict[str, Any]:
    """A whole recipe in which one or two values are exchanged."""
    tree: dict[str, Any] = load_recipe("quickstart").recipe.model_dump(mode="json")
    for _ in range(draw(st.integers(1, 2))):
        section: Any = tree
        while True:
            name = draw(st.sampled_from(sorted(section)))
            below = section[name]
            if not isinstance(below, dict) or not below or draw(st.booleans()):
                section[name] = draw(JSON_VALUES)
                break
            section = below
    return tree


@st.composite
def _configs(draw: st.DrawFn) -> dict[str, Any]:
    """A mapping whose keys DeepSpeed knows, with values of any kind."""

    def section(key: Key, depth: int) -> dict[str, Any]:
        names = draw(st.lists(st.sampled_from(sorted(key.keys or ["x"])), max_size=4))
        return {name: below((key.keys or {}).get(name), depth) for name in names}

    def below(key: Key | None, depth: int) -> Any:
        if key is not None and key.keys and depth and draw(st.booleans()):
            return section(key, depth - 1)
        return draw(JSON_VALUES)

    return section(table().top, 3)


@st.composite
def _bad_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A good config in which some values are exchanged: sections that check each other stay."""
    config = copy.deepcopy(draw(st.sampled_from(GOOD_CONFIGS)))
    for _ in range(draw(st.integers(1, 4))):
        section: Any = config
        while section:
            name = draw(st.sampled_from(sorted(section)))
            if not isinstance(section[name], dict) or draw(st.integers(0, 5)) == 0:
                section[name] = draw(JSON_VALUES)
                break
            section = section[name]
    return config


def _seeds(folder: str, suffix: str) -> list[str]:
    files = sorted(shipped_folder(folder).rglob(f"*{suffix}"))[:6]
    return [file.read_text(encoding="utf-8") for file in files]


_RECORD = st.dictionaries(
    st.sampled_from(["messages", "prompt", "completion", "chosen", "rejected", "text"]),
    JSON_VALUES
    | st.sampled_from([value for chat in _CHATS for value in chat.values()])
    | st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "x"]), JSON_VALUES, max_size=3),
        max_size=3,
    ),
    max_size=4,
)
_KEYS = st.sampled_from(
    ["model", "data", "batch.micro_size", "optimizer.lr", "schedule", "deepspeed", "environment.A",
     "training_args.seed", "seed", "model.architecture", "data.train", "duration", "x", ""]
)  # fmt: skip

TARGETS = (
    Target(
        "recipe YAML",
        mangled(["extends: quickstart\n", *_seeds("recipes", ".yaml")], _YAML),
        _recipe_text,
        cost=8,
    ),
    Target("recipe tree", _trees(), _recipe_tree, cost=8),
    Target(
        "--set",
        st.tuples(_KEYS, mangled(["=1", "=[a, b]", "={steps: 10}", "=1e-4"], _YAML)).map("".join),
        _override,
        cost=4,
    ),
    Target("hostfile", mangled(["w1 slots=4\nw2 slots=2 # x\n", "w1:4,w2:4"], _HOSTS), _hostfile),
    Target("DeepSpeed JSON", mangled_bytes(_seeds("ds_configs", ".json"), _JSON), _config_text),
    Target("DeepSpeed config", _configs() | _bad_configs(), _config),
    Target("events.jsonl", mangled_bytes([_RUN_EVENTS], _JSON), _events, cost=2),
    Target(
        "manifest",
        mangled_bytes(['{"format": 1, "name": "x", "attempts": [{"number": 1}]}'], _JSON),
        _manifest,
        cost=2,
    ),
    Target("control words", mangled_bytes([_WORDS], _JSON), _words),
    Target(
        "control channel",
        st.tuples(st.booleans(), mangled_bytes([_WORDS], _JSON)),
        _channel,
        cost=20,
    ),
    Target("chats and preferences", st.lists(_RECORD, min_size=1, max_size=3), _records, cost=2),
)
EXPECTED = (DslmError, Malformed)
