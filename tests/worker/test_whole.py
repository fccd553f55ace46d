"""What a training has learnt goes whole from any ZeRO stage to any other, with its optimizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dslm.host.network import free_port

pytestmark = pytest.mark.slow


def test_every_stage_goes_on_from_every_other() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.worker.all_stages"],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "MASTER_PORT": str(free_port())},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    undisturbed = {(p, stage): losses for p, stage, new, losses in rows if new is None}
    moved = [(p, old, new, losses) for p, old, new, losses in rows if new is not None]
    assert len(moved) == 2 * 4 * 4
    for precision, old, new, losses in moved:
        assert losses == pytest.approx(undisturbed[precision, old], abs=1e-5), (precision, old, new)
