"""A short run of every fuzzer: no input brings about an error that dslm doesn't explain."""

from __future__ import annotations

import pytest

from dslm.errors import RecipeError
from tests.fuzz.driver import Tally, fuzz
from tests.fuzz.targets import TARGETS, Target

EXAMPLES = 120  # fewer where one takes longer


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_is_an_internal_error(target: Target) -> None:
    tally = Tally()
    fuzz(target, EXAMPLES, 0, tally)
    assert tally.executions >= EXAMPLES // target.cost // 2


def test_a_fuzzer_finds_what_is_no_clear_refusal() -> None:
    def run(value: str) -> None:
        if "#" in value:
            raise KeyError(value)
        raise RecipeError("refused")

    hostfile = next(target for target in TARGETS if target.name == "hostfile")
    with pytest.raises(KeyError):
        fuzz(Target("planted", hostfile.inputs, run), 400, 0, Tally())
