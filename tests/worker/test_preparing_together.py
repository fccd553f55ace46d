"""One process prepares, the others wait, however long; what was killed goes on where it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dslm.host.network import free_port
from tests.worker.prepare_slowly import PATIENCE
from tests.worker.preparing import documents, write_lines

pytestmark = pytest.mark.slow


def _start(cache: Path, *arguments: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-P", "-m", "tests.worker.prepare_slowly", *map(str, arguments)]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)}
    )


@pytest.mark.parametrize("hosts", [1, 2])
def test_ranks_wait_longer_than_a_collective_may_take(hosts: int, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", [{"text": text} for text in documents(40)])
    long, port = 2.5 * PATIENCE, free_port()
    # on one host either may be the one that prepares; a second one has next to nothing to do
    seconds = (long, long if hosts == 1 else 0)
    ranks = [
        _start(tmp_path / f"cache-{rank % hosts}", rank, port, file, seconds[rank])
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert all(f"{number} together" in text for number, text in enumerate(said))
    if hosts == 1:
        assert all("prepare" in text or "writing" in text for text in said), said
        assert "another process prepares the data" in "".join(said)


def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path) -> None:
    records = [{"text": text} for text in documents(3 * 4096)]
    file = write_lines(tmp_path / "data.jsonl", records)
    port = free_port()
    ranks = [_start(tmp_path / f"cache-{n}", n, port, file, 2.0) for n in range(2)]
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache-0/dslm/*/parts/train-000001.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
        rank.communicate()
    port = free_port()
    ranks = [_start(tmp_path / f"cache-{n}", n, port, file, 2.0) for n in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert all("together" in text for text in said)
    # the first two parts of before the kill were used as they were
    encoded = [int(line.split()[-1]) for line in said[0].splitlines() if "encoding" in line]
    assert sum(encoded) == 4096
