"""docs/errors.md says what dslm really answers: each example is run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm import errors
from scripts.error_examples import EXAMPLES, Example, run
from tests.support.warm import warm_dslm

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
LAUNCHING = [example for example in EXAMPLES if example.argv[0] == "launch"]
OTHERS = [example for example in EXAMPLES if example not in LAUNCHING]


def _check(example: Example, *program: str) -> None:
    code, said = run(example, program=program) if program else run(example)
    assert code == getattr(errors, example.error).exit_code, said
    assert said.startswith("error: ")
    if example.is_stable:
        assert said in PAGE, f"{said}\n\nWrite it down: python scripts/docs.py --examples"


@pytest.mark.slow
@pytest.mark.parametrize("example", OTHERS, ids=lambda example: example.error)
def test_an_example_is_what_the_command_says(example: Example) -> None:
    _check(example, *warm_dslm())


@pytest.mark.slow
@pytest.mark.parametrize("example", LAUNCHING, ids=lambda example: example.error)
def test_an_example_that_starts_a_script_is_what_the_command_says(example: Example) -> None:
    _check(example)


def test_every_error_has_an_example() -> None:
    leaves = {
        kind.__name__
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.DslmError)
        if not kind.__subclasses__()
    }
    assert leaves == {example.error for example in EXAMPLES}
