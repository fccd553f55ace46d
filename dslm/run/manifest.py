"""manifest.json: what a run was made with: versions, code, command, hosts, and its attempts.

Written when the run directory is made, and again when an attempt starts or ends. Holds no secret:
what is one on the command line is left out.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dslm.files import write_json
from dslm.run.directory import RunDirectory
from dslm.secrets import command_without_secrets

_PACKAGES = ("dslm", "torch", "deepspeed", "transformers", "accelerate", "datasets", "tokenizers")


def new_manifest(
    *, name: str, command: Sequence[str], hosts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest of a run that starts now."""
    return {
        "name": name,
        "created": round(time.time(), 3),
        "command": command_without_secrets(command),
        "folder": str(Path.cwd()),
        "versions": {"python": platform.python_version(), **versions()},
        "git": _git_state(),
        "hosts": list(hosts),
        "attempts": [],
    }


def read_manifest(run: RunDirectory) -> dict[str, Any]:
    """The manifest of a run."""
    manifest: dict[str, Any] = json.loads(run.manifest.read_text(encoding="utf-8"))
    return manifest


def add_attempt(
    run: RunDirectory,
    *,
    hosts: Sequence[tuple[str, int]],
    resumed_from: str | None = None,
    step: int = 0,
) -> int:
    """Write down that an attempt starts, where and from which step; its number, from 1."""
    manifest = read_manifest(run)
    attempt = len(manifest["attempts"]) + 1
    manifest["attempts"].append(
        {
            "attempt": attempt,
            "started": round(time.time(), 3),
            "hosts": [{"host": name, "slots": slots} for name, slots in hosts],
            "world_size": sum(slots for _, slots in hosts),
            "resumed_from": resumed_from,
            "step": step,
        }
    )
    write_json(run.manifest, manifest)
    return attempt


def end_attempt(run: RunDirectory, attempt: int, *, status: str, cause: str | None) -> None:
    """Write down how an attempt ended."""
    manifest = read_manifest(run)
    manifest["attempts"][attempt - 1] |= {
        "ended": round(time.time(), 3),
        "status": status,
        "cause": cause,
    }
    write_json(run.manifest, manifest)


def versions() -> dict[str, str]:
    """The versions of what a run is made with, as they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit of the folder that the run was started in, and whether it had changes."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run(
            [git, *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
