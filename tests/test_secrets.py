"""A secret is known by its name or by its shape, and what only resembles one is left alone."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from dslm.recipe.findings import known_keys
from dslm.secrets import (
    command_without_secrets,
    find_in_arguments,
    find_secrets,
    sounds_secret,
    text_without_secrets,
    why_secret,
)
from dslm.zero.lint import known

RANDOM = "9f86d081884c7d659a2feaa0c55ad015"
SHAPES = [
    "hf_" + "aB3" * 11,
    "api_org_" + "aB3" * 11,
    "sk-" + "abcdefghij" * 3,
    "sk-proj-ab_cd-efghij",
    "sk-ant-api03-abcdefgh",
    "ghp_" + "a1" * 18,
    "gho_" + "a1" * 18,
    "github_pat_11ABCDEFG0" + "x" * 40,
    "glpat-abcdefghij0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSy" + "a" * 33,
    "xoxb-123456789012-abcdefghijkl",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc123",
    "npm_" + "a" * 36,
    "nvapi-" + "a1" * 20,
    "-----BEGIN PRIVATE KEY-----\nMIIEv\n-----END PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----",
    "Bearer abcdef0123456789",
    "https://me:hunter2@example.org/data.jsonl",
]
NAMED = [
    ("hub_token", "abc"),
    ("hubToken", "abc"),
    ("HF_TOKEN", "abc"),
    ("HF_TOKEN_2", "abc"),
    ("HUGGING_FACE_HUB_TOKEN", "abc"),
    ("token", "abc"),
    ("token", 12345),
    ("--hub-token", "abc"),
    ("api_key", "abc"),
    ("API-KEY", "abc"),
    ("apikey", "abc"),
    ("api_keys", "abc"),
    ("WANDB_API_KEY", "abc"),
    ("AWS_SECRET_ACCESS_KEY", "abc"),
    ("AWS_ACCESS_KEY_ID", "abc"),
    ("AWS_SESSION_TOKEN", "abc"),
    ("client_secret", "abc"),
    ("secrets", "abc"),
    ("DB_PASSWORD", "abc"),
    ("passwd", "abc"),
    ("ssh_private_key", "abc"),
    ("credentials", "abc"),
    ("comet.api_key", "abc"),
    ("comet.key", RANDOM),
    ("authorization", RANDOM),
    ("--wandb-key", RANDOM),
]
HARMLESS = [
    ("tokenizer", "gpt2"),
    ("token_ids", "5"),
    ("pad_token_id", 5),
    ("max_tokens", 1024),
    ("max_new_tokens", "1024"),
    ("num_tokens", 10**15),
    ("tokens", "1e9"),
    ("image_token", "<image>"),
    ("add_token", "foo"),
    ("pad_token", "<pad>"),
    ("eos_token", "</s>"),
    ("mask_token", "[MASK]"),
    ("token", "<|im_end|>"),
    ("use_auth_token", True),
    ("hub_token", None),
    ("hub_token", ""),
    ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
    ("HF_TOKEN_PATH", "/home/me/.token"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json"),
    ("data.train", "tokens.jsonl"),
    ("data.train", "secrets/password.txt"),
    ("train", "s3://bucket/hf_datasets/a.jsonl"),
    ("model.name", "hf-internal-testing/tiny-random-bert"),
    ("name", "org/sk-learned-model"),
    ("revision", "9f86d081884c7d659a2feaa0c55ad0159f86d081"),
    ("key_field", "id"),
    ("key", "layer_17_attention"),
    ("key", "model.layers.17"),
    ("label_key", "answer"),
    ("public_key", "ssh-ed25519"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("MASTER_ADDR", "10.0.0.1"),
    ("url", "http://proxy.example.org:3128/a@b"),
    ("PWD", "/home/me/a1b2c3d4e5f6a7b8"),
    ("session", "training-session-of-monday"),
]


@pytest.mark.parametrize("value", SHAPES)
def test_a_secret_is_known_by_its_shape_under_any_name(value: str) -> None:
    assert why_secret("note", value).startswith("looks like")
    assert value not in text_without_secrets(f"it said {value} and went on")
    assert list(find_in_arguments(["--name", value])) or list(
        find_in_arguments([f"--name={value}"])
    )
    for command in (["--name", value], [f"--name={value}"], [f"note={value}"], [value]):
        assert value not in " ".join(command_without_secrets(command))


@pytest.mark.parametrize(("name", "value"), NAMED)
def test_a_secret_is_known_by_its_name(name: str, value: object) -> None:
    assert why_secret(name, value)
    for command in ([name, str(value)], [f"{name}={value}"], ["--set", f"a.{name}={value}"]):
        if command[0].startswith("-") or "=" in command[0]:
            assert str(value) not in command_without_secrets(command)[-1]


@pytest.mark.parametrize(
    "argument",
    [
        "--set=training_args.hub_token=abc",
        "-straining_args.hub_token=abc",
        "--env=HF_TOKEN=abc",
        '{"hub_token": "abc"}',
        "deepspeed={comet: {enabled: true, api_key: abc}}",
        "token='abc'",
    ],
)
def test_a_secret_is_found_inside_an_argument(argument: str) -> None:
    assert [position for position, _ in find_in_arguments(["x.py", argument])] == [1]
    assert "abc" not in command_without_secrets(["x.py", argument])[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--use-token", "--lr", "1"],
        ["--tokenizer", "gpt2"],
        ["--max-tokens=5"],
        ["--prompt", "the password: what is it?"],
        ["--pad-token", "<pad>"],
        ["--data.train=tokens.jsonl"],
    ],
)
def test_harmless_arguments_stay(arguments: list[str]) -> None:
    assert command_without_secrets(arguments) == arguments


@pytest.mark.parametrize(("name", "value"), HARMLESS)
def test_what_only_resembles_a_secret_is_none(name: str, value: object) -> None:
    assert not why_secret(name, value)


def test_a_secret_is_found_wherever_it_stands() -> None:
    tree = {
        "training_args": {"hub_token": "abc"},
        "deepspeed": {"comet": {"api_key": "abc", "enabled": True}},
        "environment": {SHAPES[0]: "x"},
        "data": {"train": [{"path": SHAPES[-1]}, "a.txt"]},
        "model": {"api_keys": ["abc"], "tokenizer": "gpt2"},
    }
    assert sorted(key for key, _ in find_secrets(tree)) == [
        "data.train.0.path",
        "deepspeed.comet.api_key",
        "environment",
        "model.api_keys.0",
        "training_args.hub_token",
    ]


def test_no_key_of_a_recipe_sounds_secret() -> None:
    assert not [key for key in known_keys() if sounds_secret(key)]


def test_of_all_training_arguments_only_tokens_of_the_hub_sound_secret() -> None:
    """The names are read from transformers' source: importing it takes seconds."""
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name("training_args.py").read_text(encoding="utf-8")
    arguments = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    names = [
        node.target.id
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert len(names) > 80
    secret = {name for name in names if sounds_secret(name)}
    assert {"hub_token"} <= secret <= {"hub_token", "push_to_hub_token"}


def test_of_all_keys_of_deepspeed_only_comets_key_sounds_secret() -> None:
    def paths(node: dict[str, object], above: str = "") -> list[str]:
        keys = node.get("keys", {})
        assert isinstance(keys, dict)
        return [
            path
            for key, below in keys.items()
            for path in (f"{above}{key}", *paths(below or {}, f"{above}{key}."))
        ]

    keys = paths(known())
    assert len(keys) > 100
    assert [key for key in keys if sounds_secret(key)] == ["comet.api_key"]
