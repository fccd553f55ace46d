"""Commands that benchmarks run: what one of them said is shown when it fails, and only then."""

from __future__ import annotations

import os
import subprocess
import sys


def checked(argv: list[str], **environment: str) -> None:
    """Run a command to its end, with these environment variables beside ours; exits if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")
