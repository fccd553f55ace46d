"""Where and when a test runs, with several workers: a module in one of them, the longest first.

So what a module makes for its tests is made once, and what two modules share is, too. pytest-xdist
has groups for that, but the pinned version finds none under pytest 9.2 (pytest-dev/pytest-xdist,
issue 1386): the modules would be torn apart, and each training made once in every worker.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

# module -> group, where several modules share what is made once
SHARED = {
    "tests/worker/test_equality.py": "trainings",
    "tests/worker/test_export.py": "trainings",
    "tests/worker/test_trust.py": "trainings",
}
# group -> seconds; only their order matters, and what isn't here comes last
SECONDS: dict[str, int] = {}


def group_of(nodeid: str) -> str:
    """Return the group of a test."""
    module = nodeid.partition("::")[0]
    return SHARED.get(module, module)


def longest_first(items: list[pytest.Item]) -> None:
    """Sort the tests in place."""
    items.sort(key=lambda item: -SECONDS.get(group_of(item.nodeid), 0))


class ModuleScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands a worker all tests of a group, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
