"""A build of an operator that was killed doesn't make the next run wait for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from dslm.worker.extension_builds import (
    build_folder,
    is_built,
    program_path,
    remove_dead_marks,
)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    folder = tmp_path / "py311_cpu" / "cpu_adam"
    folder.mkdir(parents=True)
    return folder / "lock"


def test_the_mark_of_a_killed_build_is_removed(mark: Path, tmp_path: Path) -> None:
    mark.touch()
    assert remove_dead_marks(tmp_path) == [mark]
    assert FileBaton(str(mark)).try_acquire()


def test_the_mark_of_a_build_under_way_stays(mark: Path, tmp_path: Path) -> None:
    builder = FileBaton(str(mark))
    assert builder.try_acquire()
    assert remove_dead_marks(tmp_path) == []
    assert mark.exists()
    builder.release()
    assert remove_dead_marks(tmp_path) == []


def test_a_folder_that_is_not_there_has_no_marks(tmp_path: Path) -> None:
    assert remove_dead_marks(tmp_path / "none") == []
    assert not is_built("cpu_adam", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_so_does_one_of_a_build_that_another_container_sees(mark: Path, tmp_path: Path) -> None:
    builder = FileBaton(str(mark))
    assert builder.try_acquire()
    program = (
        "import sys; from pathlib import Path; from dslm.worker import extension_builds; "
        "print(extension_builds.remove_dead_marks(Path(sys.argv[1])))"
    )
    apart = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    done = subprocess.run([*apart, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert mark.exists()
    builder.release()


def test_where_holders_cannot_be_seen_a_mark_must_be_old(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dslm.worker.extension_builds._is_on_network", lambda file: True)
    mark.touch()
    assert remove_dead_marks(tmp_path) == []
    long_ago = time.time() - 3600
    os.utime(mark, (long_ago, long_ago))
    assert remove_dead_marks(tmp_path) == [mark]


def test_two_environments_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"XDG_CACHE_HOME": str(tmp_path)}
    here = build_folder(variables)
    assert here.parent == tmp_path / "torch_extensions"
    assert build_folder(variables) == here
    monkeypatch.setattr("sys.prefix", "/another/environment")
    assert build_folder(variables) != here
    assert build_folder({"TORCH_EXTENSIONS_DIR": "/mine"}) == Path("/mine")


def test_operators_are_built_by_the_ninja_of_this_environment_whatever_the_login_shell_finds(
    tmp_path: Path,
) -> None:
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\necho 0.0\n")
    other.chmod(0o755)
    path = program_path({"PATH": f"{tmp_path}:/usr/bin"})
    assert shutil.which("ninja", path=path) == str(Path(sys.executable).with_name("ninja"))
    assert shutil.which("env", path=path) == "/usr/bin/env"
    assert program_path({"PATH": path}) == path
