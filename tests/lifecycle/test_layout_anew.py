"""When hosts are lost, as many ranks share layers, sequences or experts as there still can."""

from __future__ import annotations

import pytest

from dslm.cluster.detect import local_cluster
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.errors import RecipeError
from dslm.lifecycle.rendezvous import Training, largest_job
from dslm.plan.strategy import Strategy
from dslm.recipe.load import load_recipe

_EXPERTS = (
    "model.architecture.model_type=mixtral", "model.architecture.num_local_experts=4",
    "parallel.zero_stage=1",
)  # fmt: skip
# what a run was started with, slots of the hosts that are left, and who shares what then
ROWS: tuple[tuple[tuple[str, ...], tuple[int, ...], tuple[int, int, int, int]], ...] = (
    (("parallel.sequence=2",), (1,), (1, 1, 1, 1)),
    (("parallel.sequence=2",), (1, 1), (1, 1, 2, 1)),
    (("parallel.sequence=2",), (3,), (1, 1, 2, 1)),  # of three ranks two
    (("parallel.tensor=4",), (2,), (1, 2, 1, 1)),
    (("parallel.expert=4", *_EXPERTS), (2,), (2, 1, 1, 2)),
    ((), (3,), (2, 1, 1, 1)),
)


def _strategy(changes: tuple[str, ...], slots: tuple[int, ...]) -> Strategy:
    loaded = load_recipe("quickstart", [*changes, "batch.global_size=4", "batch.micro_size=1"])
    asking = Asking(verb=Verb.TRAIN, here=False, force=True)
    training = Training(recipe=loaded, asking=asking, report=lambda detail: None)
    hosts = tuple(Host(f"w{n}", count) for n, count in enumerate(slots))
    fit = Cluster(hosts=hosts, device=local_cluster(num_gpus=1).device)
    return largest_job(training, fit, 1).plan.strategy


@pytest.mark.parametrize(("changes", "slots", "wanted"), ROWS)
def test_the_layout_is_chosen_anew(
    changes: tuple[str, ...], slots: tuple[int, ...], wanted: tuple[int, int, int, int]
) -> None:
    found = _strategy(changes, slots)
    sizes = found.tensor_parallel, found.sequence_parallel, found.expert_parallel
    assert (found.data_parallel_size, *sizes) == wanted


def test_what_no_layout_helps_is_said_as_it_was_asked_for() -> None:
    with pytest.raises(RecipeError, match="fp16"):
        _strategy(("parallel.sequence=2", "precision=fp16"), (1,))
