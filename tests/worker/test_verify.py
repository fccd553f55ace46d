"""`dslm verify` finds what is planted, says why, and lets alone what learns as one process does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import small_model
from tests.support.warm import PLANT, warm_dslm
from tests.worker.planted import FAULTS
from tests.worker.planting import LORA, MOE, PRETRAINED

pytestmark = pytest.mark.slow

SMALL = {"data.max_documents": 60, "batch.global_size": 8, "batch.micro_size": 2}
# of the faults, those that the suite plants; `make verify-faults` plants all
IN_THE_SUITE = (
    "gradients scaled by the ranks", "a leak between packed documents", "an untied table",
    "a wrong learning rate on one rank", "a flipped bit in one replica",
    "weights that were not loaded", "a schedule one step late", "dropout in an evaluation",
)  # fmt: skip


def verified(
    folder: Path, recipe: str, given: dict[str, Any], *, options: Sequence[str] = (), **more: str
) -> tuple[int, Any, str]:
    """Verify a recipe with two warm ranks: exit code, document, what was said."""
    argv = [*warm_dslm(), "verify", recipe, "--json", "-o", str(folder / "run"), "--steps", "2"]
    argv += options
    for key, value in {**SMALL, "parallel.ranks": 2, **given}.items():
        made = small_model(folder / "model") if value == PRETRAINED else value
        argv += ["-s", f"{key}={made}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=500,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "250", **more},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def fault_found(name: str, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Plant a fault and verify: the difference that names it, if one does, and what was said."""
    fault = FAULTS[name]
    more = {PLANT: "tests.worker.planted:plant", "DSLM_TEST_FAULT": name}
    code, found, said = verified(folder, fault.recipe, dict(fault.settings), **more)
    named = (
        {**each, "more": found["found"] - 1}
        for each in found.get("differences", ())
        if code == 5 and each["kind"] == fault.kind and fault.names in each["name"]
    )
    return next(named, None), f"{name}: {code} {found.get('differences')} {said[-3000:]}"


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_a_planted_fault_is_found_and_named(name: str, tmp_path: Path) -> None:
    named, said = fault_found(name, tmp_path)
    assert named, said


def test_two_layouts_are_compared_with_each_other_too(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("extends: quickstart\nparallel: {zero_stage: 3}\n")
    code, found, said = verified(tmp_path, "quickstart", {}, options=("--against", str(other)))
    assert code == 0, said
    assert [each["stage"] for each in found["layouts"]] == [2, 3]
    assert all(each["same"] for each in found["layouts"])
    assert found["other_keys"] == []
    assert found["losses_apart"] < 1e-5
    assert "the losses of the two layouts are" in said


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("quickstart", {"parallel.zero_stage": 3}),
        ("quickstart", {"parallel.zero_stage": 2, "precision": "bf16"}),
        ("quickstart", {"parallel.zero_stage": 3, "precision": "bf16", **MOE}),
        ("quickstart-mlm", {"parallel.zero_stage": 1}),
        ("quickstart", {"parallel.zero_stage": 1, "parallel.tensor": 2}),
        ("quickstart", {"parallel.zero_stage": 3, "parallel.sequence": 2}),
        ("quickstart-dpo", {"parallel.zero_stage": 3, **LORA, "precision": "bf16"}),
        ("quickstart-kto", {"parallel.zero_stage": 2}),
        ("quickstart-orpo", {"parallel.zero_stage": 1}),
        ("quickstart-reward", {"parallel.zero_stage": 3}),
        (
            "quickstart",
            {"parallel.zero_stage": 3, **LORA, "precision": "bf16", "quantize": "nf4"},
        ),
    ],
)
def test_a_layout_that_learns_as_one_process_does_is_let_alone(
    recipe: str, given: dict[str, Any], tmp_path: Path
) -> None:
    code, found, said = verified(tmp_path, recipe, given)
    assert code == 0, said
    assert found["same"]
    assert found["parameters"] > 10
    assert json.loads((tmp_path / "run" / "verified.json").read_text())["same"]
