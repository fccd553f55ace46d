"""What a module makes for its tests is made once: on that the time of the whole suite rests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support import schedule

ROOT = Path(__file__).parents[2]
MODULE = """
import pytest
@pytest.mark.parametrize("number", range(8))
def test_one(number: int) -> None:
    pass
"""
CONFTEST = "from tests.conftest import pytest_xdist_make_scheduler"


def test_a_module_runs_in_one_worker(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(MODULE)
    argv = [sys.executable, "-m", "pytest", "-v", "-n", "2", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*argv, "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    ran = set(re.findall(r"^\[(gw\d)\].* PASSED \S*(test_\w)\.py", done.stdout, re.MULTILINE))
    assert sorted(module for _, module in ran) == ["test_a", "test_b", "test_c", "test_d"], ran
    assert len({worker for worker, _ in ran}) == 2


def test_every_module_of_the_table_exists() -> None:
    names = {*schedule.SHARED, *schedule.SECONDS} - {*schedule.SHARED.values()}
    assert not [name for name in names if not (ROOT / name).is_file()]
