"""However a worker ends, one message says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.ask.call import ask
from dslm.errors import RunFailed

ANSWERS = (
    "import os, signal\nfrom dslm.worker.answer import answer\ndef work(request, tell):\n    {}\n"
)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}['nothing']", "dslm itself failed: KeyError: 'nothing'"),
        ("raise RuntimeError('x' * 100_000)", "dslm itself failed: RuntimeError: xxx"),
        ("raise ValueError('\\ud800')", "dslm itself failed: ValueError"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("os._exit(3)", "ended with 3 and gave no answer"),
    ],
)
def test_a_worker_that_fails_as_nobody_foresaw_gives_one_message(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(ANSWERS.format(line) + "answer(work)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunFailed) as caught:
        ask("failing", {})
    assert said in caught.value.message
    assert "Traceback" not in caught.value.message
    assert len(caught.value.message) < 1000


def test_a_module_that_can_not_be_started_is_said() -> None:
    with pytest.raises(RunFailed, match="No module named"):
        ask("no_such_module", {})
