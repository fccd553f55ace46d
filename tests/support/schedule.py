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
    "tests/worker/test_purposes.py": 490,
    "tests/worker/test_resume.py": 450,
    "trainings": 420,
    "tests/lifecycle/test_many_hosts.py": 350,
    "tests/lifecycle/test_launchers.py": 190,
    "tests/plan/test_engine.py": 170,
    "tests/worker/test_tasks.py": 110,
    "tests/zero/test_presets_by_hand.py": 110,
    "tests/worker/test_layout_tasks.py": 100,
    "tests/cli/test_pairs.py": 90,
    "tests/lifecycle/test_links.py": 90,
    "tests/worker/test_verify.py": 80,
    "tests/worker/test_quickstart.py": 80,
    "tests/launch/test_supervision.py": 70,
    "tests/lifecycle/test_two_trainings.py": 70,
    "tests/worker/test_lora.py": 70,
    "tests/worker/test_weights_only.py": 70,
    "tests/zero/test_lint_against_the_engine.py": 60,
    "tests/plan/test_long_samples.py": 60,
    "tests/worker/test_adapters.py": 60,
    "tests/launch/test_slurm_batch.py": 60,
    "tests/decide/test_checks.py": 60,
    "tests/lifecycle/test_one_load.py": 50,
    "tests/worker/test_features.py": 50,
    "tests/worker/test_loading.py": 50,
    "tests/plan/test_coverage.py": 50,
    "tests/plan/test_activations.py": 50,
    "tests/worker/test_trackers.py": 50,
    "tests/worker/test_long_context.py": 40,
    "tests/worker/test_grpo.py": 40,
    "tests/worker/test_layouts.py": 40,
    "tests/cluster/test_namespaces.py": 40,
    "tests/cli/test_terminals.py": 30,
    "tests/plan/test_features.py": 30,
    "tests/decide/test_model.py": 30,
    "tests/worker/test_whole.py": 30,
    "tests/docs/test_pages.py": 30,
    "tests/launch/test_control_port.py": 30,
    "tests/worker/test_preparing_together.py": 30,
    "tests/docs/test_error_examples.py": 30,
    "tests/plan/test_scenarios.py": 30,
    "tests/worker/test_guards.py": 20,
    "tests/launch/test_sites.py": 20,
    "tests/decide/test_matrix.py": 20,
    "tests/lifecycle/test_tuning.py": 20,
    "tests/lifecycle/test_trainer_script.py": 20,
    "tests/cli/test_bad_input.py": 20,
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
