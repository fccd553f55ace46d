"""manifest.json: what a run was made with: versions, code, command, hosts, and its attempts.

Written when the run directory is made, and again when an attempt starts or ends. Holds no secret:
what is one on the command line is left out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dslm.run.directory import RunDirectory
from dslm.run.documents import (
    FORMAT,
    AttemptRecord,
    GitState,
    HostSlots,
    Manifest,
    read_document,
    write_document,
)
from dslm.run.events import now
from dslm.secrets import command_without_secrets

_PACKAGES = ("dslm", "torch", "deepspeed", "transformers", "accelerate", "datasets", "tokenizers")


def new_manifest(*, name: str, command: Sequence[str], hosts: Sequence[HostSlots]) -> Manifest:
    """Return the manifest of a run that starts now."""
    return Manifest(
        name=name,
        created=now(),
        command=tuple(command_without_secrets(command)),
        folder=str(Path.cwd()),
        versions={"python": platform.python_version(), **versions()},
        git=_git_state(),
        hosts=tuple(hosts),
    )


def read_manifest(run: RunDirectory) -> Manifest:
    """Return the manifest of a run.

    Raises:
        OptionError: there is none, it is damaged, or of a later format.
    """
    return read_document(Manifest, run.manifest)


def begin_here(run: RunDirectory) -> None:
    """Write down that the relative paths of a run's recipe are seen from the current folder."""
    manifest = read_manifest(run)
    _write(run, replace(manifest, folder=str(Path.cwd())), manifest.attempts)


def add_attempt(
    run: RunDirectory,
    *,
    hosts: Sequence[HostSlots],
    resumed_from: str | None = None,
    step: int = 0,
) -> int:
    """Write down that an attempt starts, where and from which step; its number, from 1."""
    manifest = read_manifest(run)
    record = AttemptRecord(
        attempt=len(manifest.attempts) + 1,
        started=now(),
        hosts=tuple(hosts),
        world_size=sum(host.slots for host in hosts),
        resumed_from=resumed_from,
        step=step,
    )
    _write(run, manifest, (*manifest.attempts, record))
    return record.attempt


def end_attempt(run: RunDirectory, attempt: int, *, status: str, cause: str | None) -> None:
    """Write down how an attempt ended."""
    manifest = read_manifest(run)
    ended = replace(manifest.attempts[attempt - 1], ended=now(), status=status, cause=cause)
    before, after = manifest.attempts[: attempt - 1], manifest.attempts[attempt:]
    _write(run, manifest, (*before, ended, *after))


def _write(run: RunDirectory, manifest: Manifest, attempts: tuple[AttemptRecord, ...]) -> None:
    write_document(run.manifest, replace(manifest, format=FORMAT, attempts=attempts))


def versions() -> dict[str, str]:
    """Return the versions of what a run is made with, as they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_state() -> GitState | None:
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
        return GitState(
            commit=ask("rev-parse", "HEAD"),
            changed=bool(ask("status", "--porcelain", "--untracked-files=no")),
        )
    except (OSError, subprocess.SubprocessError):
        return None
