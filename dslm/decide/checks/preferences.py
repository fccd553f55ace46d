"""Checks on what preferences are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from dslm.decide.checks.base import TRAINING, Case, Check, Problem
from dslm.recipe.preferences import COMPARING


def _reference(case: Case) -> Iterator[Problem]:
    recipe = case.recipe
    if recipe.reference != "model" and recipe.task not in COMPARING:
        yield Problem(
            key="reference",
            message=f"the task `{recipe.task}` compares with no log-probabilities of a reference",
            hint=f"leave it out: {' and '.join(sorted(COMPARING))} do",
        )
    elif recipe.reference != "model" and recipe.lora is not None and recipe.lora.adapter:
        yield Problem(
            key="reference",
            message="the reference is the model with the adapters that it begins with, and a table "
            "is of the model alone",
            hint="leave it out: a second copy of the adapters is small",
        )
    if recipe.training_args.get("sync_ref_model"):
        yield Problem(
            key="training_args.sync_ref_model",
            message="a reference that moves is in no checkpoint: a resumed run would compare with "
            "another one",
            hint="leave it out: the reference stays as the model was at the start",
        )


CHECKS = (
    Check(
        name="a reference that is compared with, and stays",
        looks_at="reference, task, training_args.sync_ref_model",
        judge=_reference,
        verbs=TRAINING,
    ),
)
