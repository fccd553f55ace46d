"""What all tests share: a shell for dslm, and no leftovers of the caller's environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.commands import forget_shared_memory, operators
from tests.cluster.namespaces import MakeHosts, make_hosts
from tests.support.golden import SameAs, make_same_as
from tests.support.schedule import ModuleScheduling, longest_first
from tests.support.warm import warm_dslm, warm_popen

DSLM = Path(sys.executable).parent / "dslm"
# where dslm has operators built, and with its ninja; else those of plain DeepSpeed, and of tests
# with a cache of their own, would be built again, for a minute each, and dslm's after them
os.environ |= operators()
Dslm = Callable[..., subprocess.CompletedProcess[str]]
_BEGAN_WITH: dict[str, str] = {}
_COLD = subprocess.Popen


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes golden files instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden")


def pytest_sessionstart() -> None:
    """Keep the variables that a session begins with; mutmut has several sessions in a process."""
    _BEGAN_WITH.clear()
    _BEGAN_WITH.update(os.environ)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest."""
    longest_first(items)


def pytest_collection_finish() -> None:
    """Take back what the test modules' own imports have set: no test depends on which there are."""
    _restore(_BEGAN_WITH)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave no memory behind that ranks of plain DeepSpeed shared, once no worker has any."""
    if not hasattr(session.config, "workerinput"):
        forget_shared_memory()


@pytest.hookimpl(optionalhook=True)  # without xdist there is none
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ModuleScheduling:
    """Let each module run in one worker."""
    return ModuleScheduling(config, log)


def _runner(folder: Path, program: Sequence[str]) -> Dslm:
    def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *argv],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=560,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        )

    return run


@pytest.fixture(autouse=True)
def own_surroundings() -> Iterator[None]:
    """Leave variables and the folder as they were: libraries set some when they are imported."""
    before, folder = dict(os.environ), Path.cwd()
    yield
    _restore(before)
    os.chdir(folder)


def _restore(variables: Mapping[str, str]) -> None:
    """Give back the variables that there were."""
    for name in os.environ.keys() - variables.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(variables)


@pytest.fixture
def dslm(tmp_path: Path) -> Dslm:
    """Run dslm as its user would, in an empty folder: exit code, stdout and stderr."""
    return _runner(tmp_path, [str(DSLM)])


@pytest.fixture
def warm(tmp_path: Path) -> Dslm:
    """Run dslm so that its ranks, and what it asks of the worker, are forked."""
    return _runner(tmp_path, warm_dslm())


@pytest.fixture(scope="session", autouse=True)
def warm_asks() -> Iterator[None]:
    """Fork what this process asks of the worker: a trace, a conversion, an export."""
    vars(subprocess)["Popen"] = warm_popen()
    yield
    vars(subprocess)["Popen"] = _COLD


@pytest.fixture
def cold_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start what this process asks of the worker as dslm does."""
    monkeypatch.setattr(subprocess, "Popen", _COLD)


@pytest.fixture
def same_as(pytestconfig: pytest.Config) -> SameAs:
    """Compare a text with a file below tests/golden: `same_as("findings/lint.txt", text)`."""
    return make_same_as(pytestconfig)


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeHosts]:
    """Make clusters of real hosts, as namespaces on this machine: `cluster = hosts(2)`."""
    yield from make_hosts(lambda: tmp_path_factory.mktemp("hosts"))


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup of 64 MiB, version 1 or 2; needs the right to make one."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"dslm-test-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if version_1 else "memory.max")
    try:
        group.mkdir()
        limit.write_text(str(64 << 20))
    except OSError as failure:
        pytest.skip(f"no memory cgroup can be made here: {failure}")
    yield group
    deadline = time.monotonic() + 5
    while group.exists() and time.monotonic() < deadline:
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
