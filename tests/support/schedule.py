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
# group -> seconds, about; only their order matters, and what isn't here comes last
SECONDS: dict[str, int] = {
    "tests/worker/test_purposes.py": 400,
    "tests/lifecycle/test_many_hosts.py": 220,
    "tests/worker/test_resume.py": 300,
    "tests/lifecycle/test_launchers.py": 220,
    "trainings": 240,
    "tests/launch/test_supervision.py": 130,
    "tests/plan/test_engine.py": 140,
    "tests/worker/test_tasks.py": 200,
    "tests/worker/test_verify.py": 150,
    "tests/lifecycle/test_links.py": 115,
    "tests/lifecycle/test_two_trainings.py": 70,
    "tests/worker/test_lora.py": 60,
    "tests/cli/test_terminals.py": 50,
    "tests/launch/test_sites.py": 100,
    "tests/lifecycle/test_script.py": 90,
    "tests/diagnose/test_failures.py": 40,
    "tests/cli/test_pairs.py": 80,
    "tests/worker/test_layouts.py": 75,
    "tests/worker/test_layout_tasks.py": 75,
    "tests/worker/test_long_context.py": 75,
    "tests/lifecycle/test_one_load.py": 40,
    "tests/worker/test_quickstart.py": 70,
    "tests/launch/test_slurm_batch.py": 70,
    "tests/decide/test_checks.py": 40,
    "tests/lifecycle/test_trainer_script.py": 60,
    "tests/reach/test_preflight.py": 60,
    "tests/worker/test_loading.py": 60,
    "tests/worker/test_guards.py": 60,
    "tests/cli/test_data.py": 10,
    "tests/cluster/test_namespaces.py": 50,
    "tests/zero/test_presets_by_hand.py": 95,
    "tests/lifecycle/test_run_of_0_1.py": 50,
    "tests/docs/test_error_examples.py": 40,
    "tests/reach/test_copies.py": 30,
    "tests/decide/test_matrix.py": 30,
    "tests/worker/test_grpo.py": 40,
    "tests/cli/test_after_training.py": 40,
    "tests/test_wheel.py": 30,
}


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
