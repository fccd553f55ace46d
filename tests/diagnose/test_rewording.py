"""Rewording any sentence of dslm breaks no diagnosis: what it knows are values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dslm.run.events import Error, tail_events
from tests.conftest import Dslm
from tests.diagnose.left import CASES, judged

REWORDED = Path(__file__).with_name("reworded")
ROOT = Path(__file__).parents[2]


def reworded_path() -> str:
    return os.pathsep.join([str(REWORDED), str(ROOT)])


def test_every_case_is_judged_alike_by_a_reworded_dslm(tmp_path: Path) -> None:
    code = (
        "import sys, json, sitecustomize; from pathlib import Path\n"
        "from tests.diagnose.left import judged\n"
        "from dslm.launch.outcome import Outcome, Status\n"
        "from dslm.run.endings import Kind\n"
        "from dslm.diagnose.catalogue import entry\n"
        "found = judged(Path(sys.argv[1]))\n"
        "seen = Outcome(status=Status.FAILED, attempt=1, kind=Kind.PROCESS).reason\n"
        "print(json.dumps([found, seen, entry('killed').cause, sitecustomize.count]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "reworded")],
        env={**os.environ, "PYTHONPATH": reworded_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, sentence, cause, count = json.loads(done.stdout)
    assert sentence == "sti ssecorp saw dellik morf edistuo"  # it was reworded, and all else too
    assert cause.startswith("eht ssecorp")
    assert count > 300
    assert found == judged(tmp_path / "plain")
    assert len(found) == len(CASES) > 25


KILLED = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
OWN = """
from dslm.errors import DataError
raise DataError("No space left on device, says this one", hint="look at it")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "cause"), [(KILLED, "killed"), (OWN, "bad-input")])
def test_a_real_launch_of_a_reworded_dslm_finds_the_same_cause(
    dslm: Dslm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cause: str
) -> None:
    (tmp_path / "train.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", reworded_path())
    done = dslm("launch", "train.py", "--num-gpus", "2", "-o", "run")
    assert done.returncode == 1, done.stderr
    error = tail_events(tmp_path / "run/events.jsonl").events[-1]
    assert isinstance(error, Error)
    assert error.id == cause
    assert error.rank == 1 or cause == "bad-input"
