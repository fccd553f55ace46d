"""Known failures are recognised from what the field's tools really print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from dslm.diagnose.catalogue import OWN_ERROR, catalogue, find, of_kind
from dslm.recipe.schema import Recipe
from dslm.run.endings import Kind

SAMPLES: dict[str, list[tuple[str, str]]] = yaml.safe_load(
    Path(__file__).with_name("samples.yaml").read_text(encoding="utf-8")
)
STAGES = {
    "install", "launch", "rendezvous", "start", "model", "data", "train", "save", "resume",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, pairs in SAMPLES.items() for _, text in pairs]
)
def test_a_failure_is_recognised_before_any_other(name: str, text: str) -> None:
    found = find(text)
    assert found is not None
    assert found.id == name


def test_every_entry_has_a_sample_with_its_origin_a_remedy_and_a_source() -> None:
    ids = [failure.id for failure in catalogue()]
    assert len(set(ids)) == len(ids) >= 40
    # what dslm knows itself is matched by no text
    known = {failure.id for failure in catalogue() if failure.pattern is None}
    assert known == {
        OWN_ERROR, "host-lost", "join-timeout", "stalled", "stalled-alone", "malformed-word",
    }  # fmt: skip
    assert set(ids) - known == set(SAMPLES)
    assert all(origin and text for pairs in SAMPLES.values() for origin, text in pairs)
    for failure in catalogue():
        assert failure.stage in STAGES
        assert failure.cause
        assert failure.remedy
        assert failure.source
        re.compile(failure.pattern or "")


def test_every_remedy_says_something_that_can_be_typed_or_looked_at() -> None:
    plain = {failure.id for failure in catalogue() if "`" not in failure.remedy}
    assert plain == {"peer-lost", "bad-input"}  # those point at another log, and at the message


def test_every_recipe_key_in_a_remedy_exists() -> None:
    keys = {
        key for failure in catalogue() for key in re.findall(r"--set ([\w.]+)=", failure.remedy)
    }
    assert len(keys) > 10
    for key in keys - {"training_args.ddp_timeout"}:  # transformers' own
        section, _, field = key.partition(".")
        parts = [
            part
            for part in get_args(Recipe.model_fields[section].annotation)
            or (Recipe.model_fields[section].annotation,)
            if hasattr(part, "model_fields")
        ]
        if field:
            assert field in parts[0].model_fields, key


def test_what_may_work_next_time_is_tried_again() -> None:
    retry = {failure.id for failure in catalogue() if failure.retry}
    assert {"host-lost", "ssh-unreachable", "killed", "preempted", "peer-lost"} <= retry
    assert not retry & {"shapes", "shape-mismatch", "gpu-memory", "wrong-key", "hub-permission"}


def test_what_is_not_known_is_not_explained() -> None:
    assert find("ZeroDivisionError: division by zero") is None


def test_what_the_supervisor_saw_has_a_cause_of_its_own() -> None:
    """A rank that said so itself and a launcher have none: their words say why."""
    found = {kind: of_kind(kind, alone=False) for kind in Kind}
    assert {kind for kind, failure in found.items() if failure is None} == {
        Kind.RANK, Kind.LAUNCHER,
    }  # fmt: skip
    alone = of_kind(Kind.STALL, alone=True)
    assert alone is not None
    assert "each other" not in alone.cause
    assert alone != found[Kind.STALL]
