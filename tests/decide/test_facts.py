"""What is known of transformers without importing it: types, their entries, kinds of values."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dslm.decide.checks import facts, features
from dslm.decide.checks.facts import ModelType

GPT2 = ModelType(name="gpt2", heads=(), names={"hidden_size": "n_embd"})


def test_an_entry_is_found_under_the_usual_name_or_the_types_own() -> None:
    assert GPT2.own("hidden_size") == "n_embd"
    assert GPT2.own("vocab_size") == "vocab_size"
    assert GPT2.value({"n_embd": 8}, "hidden_size") == 8
    assert GPT2.value({"hidden_size": 9}, "hidden_size") == 9
    assert GPT2.value({"n_embd": 8, "hidden_size": 9}, "hidden_size") == 8
    assert GPT2.value({"n_embd": None, "hidden_size": 9}, "hidden_size") is None
    assert GPT2.value({}, "hidden_size") is None


def test_a_type_without_names_of_its_own_has_the_usual_ones() -> None:
    types = [facts.model_type(name) for name in facts.model_types()]
    assert all(one is not None and isinstance(one.names, Mapping) for one in types)


@pytest.mark.parametrize(
    ("version", "fits"), [("2.6.0", True), ("2.14.0a0+git", True), ("2.5.1", False)]
)
def test_any_release_of_torch_is_compared_by_its_numbers(
    version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "installed_release", lambda name: version)
    assert features.has_torch("2.6") is fits


def test_a_type_has_its_heads_its_code_its_names_and_its_entries() -> None:
    gpt2 = facts.model_type("gpt2")
    assert gpt2 is not None
    assert gpt2.name == "gpt2"
    assert gpt2.heads == ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    assert {"sdpa", "activation_checkpointing"} < gpt2.code
    assert gpt2.own("num_hidden_layers") == "n_layer"
    assert gpt2.fields["n_embd"] == "int"
    assert gpt2.fields["embd_pdrop"] == "float|int"
    bare = facts.model_type("bit")
    assert bare is not None
    assert (bare.code, bare.names) == (frozenset(), {})
    assert facts.model_type("nope") is None
    assert {"gpt2", "bit", "llama"} < set(facts.model_types())


def test_arguments_and_names_are_those_of_the_libraries() -> None:
    assert facts.arguments("transformers.TrainingArguments")["max_steps"] == "int"
    assert "beta" in facts.arguments("trl.DPOConfig")
    assert "silu" in facts.names("activations")
    assert "AdamW" in facts.names("optimizers")
    assert facts.made_for("transformers")[0].isdigit()


@pytest.mark.parametrize(
    ("value", "kind", "exactly", "roughly"),
    [
        (1, "int", True, True),
        (1, "float", False, True),
        (1.0, "float", True, True),
        (1.0, "int", False, False),
        (True, "int", False, False),
        (True, "float", False, False),
        (True, "bool", True, True),
        (None, "int|none", True, True),
        (None, "int", False, False),
        ("x", "str", True, True),
        ("x", "float", False, False),
        ([1], "int|list", True, True),
        ({}, "dict", True, True),
        ((1,), "list", False, False),
        ((1,), "any", True, True),
        ("x", "any", True, True),
    ],
)
def test_a_value_is_of_a_kind(value: object, kind: str, exactly: bool, roughly: bool) -> None:
    assert facts.is_of(value, kind, exact=True) is exactly
    assert facts.is_of(value, kind, exact=False) is roughly


def test_kinds_are_said_in_words() -> None:
    assert facts.said("int|none") == "a whole number or null"
    assert facts.said("bool") == "true or false"
    assert facts.said("float|list|dict|any") == "a number with a point or a list or a mapping"
