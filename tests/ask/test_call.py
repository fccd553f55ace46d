"""However a process that was asked ends, there is an answer or one error with one message."""

from __future__ import annotations

import pytest

from dslm.ask.call import ask
from dslm.ask.session import Session
from dslm.errors import DslmError, InputError, RunFailed

MODULE = "tests.ask.asked"


pytestmark = pytest.mark.usefixtures("cold_asks")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process find the tests: dslm takes the current folder off its path."""
    from pathlib import Path

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_the_answer_and_what_goes_on_come_back() -> None:
    told: list[str] = []
    assert ask(MODULE, {"how": "well", "printed": 0}, told.append)["done"] is True
    assert told == ["at work"]


def test_what_libraries_print_is_no_answer_and_holds_nothing_up() -> None:
    assert ask(MODULE, {"how": "well", "printed": 20_000})["done"] is True


def test_its_own_errors_come_back_as_they_were() -> None:
    with pytest.raises(InputError) as found:
        ask(MODULE, {"how": "input", "printed": 1})
    assert (found.value.message, found.value.hint) == ("bad", "good")
    assert str(found.value.where) == "a:3 (k)"
    with pytest.raises(DslmError, match="not fit"):
        ask(MODULE, {"how": "own", "printed": 0})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unforeseen", "dslm itself failed: KeyError: "),
        ("chain", "dslm itself failed: ValueError: xxx"),
        ("recursion", "RecursionError"),
        ("surrogate", "dslm itself failed: ValueError"),
        ("memory", "MemoryError"),
        ("exit", "SystemExit: 7"),
        ("gone", "ended with 3 and gave no answer"),
        ("killed", "was ended by SIGKILL"),
    ],
)
def test_a_failure_that_nobody_foresaw_is_one_message(how: str, message: str) -> None:
    with pytest.raises(RunFailed) as found:
        ask(MODULE, {"how": how, "printed": 1})
    assert message in found.value.message
    assert "Traceback" not in found.value.message
    assert "\n" not in found.value.message
    assert len(found.value.message) < 1_000
    assert found.value.hint
    assert found.value.__cause__ is not None  # `--debug` shows it


def test_ctrl_c_while_libraries_are_imported_is_no_failure() -> None:
    with pytest.raises(KeyboardInterrupt), Session(MODULE) as session:
        session.ask({"how": "import", "printed": 1})


def test_a_module_that_can_not_be_imported_is_one_message() -> None:
    with pytest.raises(RunFailed) as found:
        ask("tests.ask.is_not_there", {})
    assert "gave no answer: " in found.value.message
    assert "No module named" in found.value.message
    assert "\n" not in found.value.message
