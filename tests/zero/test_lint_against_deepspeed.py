"""The linter and DeepSpeed judge the same configs alike; where they don't, a reason stands here.

Good configs are made wrong by a seed, in one or two places each, and both are asked. What DeepSpeed
refuses, the linter finds. What the linter finds and DeepSpeed takes is stricter on purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.job import resolve_job
from dslm.errors import Finding
from dslm.recipe.load import load_recipe
from dslm.zero.config import value_at
from dslm.zero.keys import known
from dslm.zero.lint import lint
from tests.zero.deepspeed_says import refusal
from tests.zero.mutations import bases, mutated

SEEDS = 2000
GENERATED = ("quickstart", "llama-3.2-1b", "bert-base")

# What DeepSpeed refuses and the linter doesn't, by DeepSpeed's words, and why.
NOT_FOUND = {
    "GDS currently only supported for CUDA": "a config knows no device: it is right on a GPU",
    "expected 1 value for": "one a parameter group: a config doesn't know how many there are",
}
Config = dict[str, Any]


def _in_a_model(path: str) -> bool:
    """Whether pydantic checks the section that a key is in."""
    node = known()
    for name in path.split(".")[:-1]:
        node = node.get("keys", {}).get(name, {})
    return bool(node.get("drops_auto"))


def _is_converted(config: Config, finding: Finding) -> bool:
    value = value_at(config, finding.where.key or "")
    return _in_a_model(finding.where.key or "") and isinstance(value, str | bool | int)


def _is_unread(config: Config, finding: Finding) -> bool:
    return (finding.where.key or "").startswith("bfloat16.") and config.get("bf16") is not None


# What the linter finds and DeepSpeed takes: (rule, is it this?, why it is found all the same).
STRICTER: list[tuple[str, Callable[[Config, Finding], bool], str]] = [
    (
        "unknown key",
        lambda _, f: not _in_a_model(f.where.key or ""),
        "at its top level and in sections without a model DeepSpeed ignores a key: a typo trains "
        "something else without a word",
    ),
    (
        "unknown key",
        lambda c, f: value_at(c, f.where.key or "") == "auto",
        'a model drops every "auto" before it looks at names',
    ),
    (
        "value",
        lambda _, f: "not a finite number" in f.message,
        "JSON has no such number; DeepSpeed checks no bound of this key",
    ),
    (
        "value",
        _is_converted,
        "DeepSpeed's models read text and truth values as numbers; transformers and accelerate, "
        "which read the same file, take them as they stand",
    ),
    *(
        (rule, _is_unread, "`bfloat16` is given beside `bf16`, which DeepSpeed reads")
        for rule in ("value", "unknown key")
    ),
    (
        "value",
        lambda _, f: not _in_a_model(f.where.key or ""),
        "DeepSpeed looks it up and checks nothing: the engine, the optimizer or the checkpoint "
        "trips over it, or takes any text for true",
    ),
    (
        "auto",
        lambda _, f: not _in_a_model(f.where.key or ""),
        "nothing fills it and DeepSpeed keeps the text",
    ),
    (
        "missing",
        lambda _, f: f.where.key in ("optimizer.type", "scheduler.type", "scheduler.params"),
        "a section without its `type` is ignored",
    ),
    (
        "stage",
        lambda _, f: f.where.key != "zero_optimization.compute_grad_norm",
        "DeepSpeed has no use for it at this stage and says nothing",
    ),
    (
        "combination",
        lambda _, __: True,
        "DeepSpeedConfig doesn't look; DeepSpeedEngine refuses: test_lint_against_the_engine.py",
    ),
    (
        "spelling",
        lambda c, _: c.get("zero_optimization") is None,
        "both spellings in a section that isn't read",
    ),
    (
        "optimizer",
        lambda _, __: True,
        "a name that DeepSpeed looks up when it makes the optimizer",
    ),
]


def _good() -> list[Config]:
    cluster = Cluster(hosts=(Host("localhost", 2),), device=device_named("h100-80gb"))
    jobs = [resolve_job(load_recipe(name, ()), cluster) for name in GENERATED]
    return [*bases(), *(job.config.values for job in jobs)]


def _errors(config: Config) -> list[Finding]:
    return [finding for finding in lint(config) if finding.severity == "error"]


@pytest.mark.parametrize("number", range(len(bases()) + len(GENERATED)))
def test_both_take_the_good_ones(number: int) -> None:
    config = _good()[number]
    assert refusal(config) == ""
    assert _errors(config) == []


def test_what_deepspeed_refuses_is_found_and_every_difference_has_a_reason() -> None:
    good = _good()
    verdicts: Counter[tuple[bool, bool]] = Counter()
    missed: dict[int, str] = {}
    unexplained: dict[int, Finding] = {}
    for seed in range(SEEDS):
        config = mutated(seed, good)
        refused, errors = refusal(config), _errors(config)
        verdicts[bool(refused), bool(errors)] += 1
        if refused and not errors and not any(said in refused for said in NOT_FOUND):
            missed[seed] = refused
        if errors and not refused:
            for finding in errors:
                if not any(
                    r == finding.rule and is_it(config, finding) for r, is_it, _ in STRICTER
                ):
                    unexplained[seed] = finding
    assert missed == {}
    assert unexplained == {}
    # the comparison saw both kinds, and the linter isn't one that finds something everywhere
    assert verdicts[True, True] > SEEDS // 3
    assert verdicts[False, False] > SEEDS // 10
