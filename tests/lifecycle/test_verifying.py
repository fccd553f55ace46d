"""What of a recipe is cut for a verification, and how two layouts are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dslm.cluster.detect import local_cluster
from dslm.decide.job import resolve_job
from dslm.lifecycle.verifying import Verification, compared_layouts, reduced
from dslm.recipe.load import load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import Verified


def cut(name: str, *settings: str, like: Verification | None = None) -> Any:
    """The recipe that a verification resolves."""
    loaded = load_recipe(name, ["parallel.ranks=2", *settings])
    cluster = local_cluster(ranks=2)
    return reduced(loaded, resolve_job(loaded, cluster), 3, like).recipe


def verification(recipe: Any, *losses: float) -> Verification:
    found = Verified(time=0.0, attempt=1, same=True, losses=losses, allowed_loss=3e-4)
    return Verification(run=RunDirectory(Path("run")), recipe=recipe, found=found)


def test_a_large_batch_and_long_samples_are_cut_and_the_layout_is_kept() -> None:
    recipe = cut("quickstart", "batch.global_size=512", "data.sequence_length=4096")
    assert recipe.data.sequence_length == 128
    assert recipe.batch.global_size <= 32
    assert recipe.parallel.zero_stage == 2
    assert recipe.duration.steps == 3


def test_answers_keep_room_behind_their_prompts() -> None:
    assert cut("quickstart-sft", "data.sequence_length=4096").data.sequence_length == 512


@pytest.mark.parametrize(
    ("curve", "kept"), [("linear", "linear"), ("cosine", "cosine"), ("inverse_sqrt", "constant")]
)
def test_a_rate_moves_along_the_recipe_s_curve_where_that_is_known(curve: str, kept: str) -> None:
    assert cut("quickstart", f"schedule.name={curve}").schedule.name == kept


def test_samples_stay_divisible_among_ranks_that_share_them() -> None:
    settings = ("parallel.sequence=2", "data.sequence_length=1000", "batch.global_size=4")
    assert cut("quickstart", *settings).data.sequence_length % 2 == 0


def test_a_second_layout_is_cut_to_as_many_sequences_as_the_first() -> None:
    one = cut("quickstart", "batch.global_size=512", "batch.micro_size=2")
    like = verification(one)
    other = cut("quickstart", "batch.global_size=512", "batch.micro_size=8", like=like)
    assert other.batch.global_size == one.batch.global_size


@pytest.mark.parametrize(
    ("settings", "losses", "keys", "differs"),
    [
        (("parallel.zero_stage=3",), (2.0, 1.0), (), False),
        (("parallel.zero_stage=3",), (2.0, 1.01), (), True),
        (("optimizer.lr=0.1",), (2.0, 1.5), ("optimizer.lr",), False),
    ],
)
def test_two_layouts_of_one_training_have_the_same_losses(
    settings: tuple[str, ...], losses: tuple[float, ...], keys: tuple[str, ...], differs: bool
) -> None:
    one, other = load_recipe("quickstart", []).recipe, load_recipe("quickstart", settings).recipe
    pair = compared_layouts(verification(one, 2.0, 1.0), verification(other, *losses))
    assert (pair.keys, pair.differs) == (keys, differs)
    assert all(key in pair.sentence for key in keys)
