"""Which tasks ranks can share layers, sequences or experts in: the others are refused by name."""

from __future__ import annotations

import itertools

import pytest

from dslm.cluster.detect import local_cluster
from dslm.decide.checks import facts, layout
from dslm.decide.checks.base import Case
from dslm.decide.model import model_of
from dslm.plan.runnable import TASKS
from dslm.recipe.load import load_recipe

SHARED = ("tensor", "sequence")
NAMES = (
    "mlm", "sft", "dpo", "orpo", "kto", "reward", "grpo", "seq2seq", "classify", "vision",
    "sequence",
)  # fmt: skip


def _refused(name: str, what: str) -> list[str]:
    """The messages of the checks on layouts about two ranks that share something."""
    # its own is a BERT, whose layers nobody knows how to share
    decoder = ["model.architecture.model_type=llama"] if name == "classify" else []
    shared = [f"parallel.{what}=2", "parallel.ranks=2", *decoder]
    loaded = load_recipe(f"quickstart-{name}", shared)
    source = model_of(loaded)
    case = Case(
        recipe=loaded.recipe,
        source=source,
        kind=facts.model_type(str(source.architecture.get("model_type"))),
        cluster=local_cluster(ranks=2),
        here=False,
    )
    found = [problem for check in layout.CHECKS for problem in check.judge(case)]
    assert all(problem.key == f"parallel.{what}" and problem.hint for problem in found)
    return [problem.message for problem in found]


@pytest.mark.parametrize(("name", "what"), itertools.product(NAMES, SHARED))
def test_a_task_is_shared_or_refused_by_name(name: str, what: str) -> None:
    messages = _refused(name, what)
    assert bool(messages) is (name not in TASKS[what])  # type: ignore[index]
    if messages:
        assert any("in the tasks" in message for message in messages)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_experts_has_none_to_share(name: str) -> None:
    assert any("no experts" in message for message in _refused(name, "expert"))
