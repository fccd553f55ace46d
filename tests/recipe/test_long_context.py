"""What `model.long_context` switches on, and what it leaves out and why."""

from __future__ import annotations

import pytest

from dslm.errors import RecipeError
from dslm.recipe.load import load_recipe
from dslm.recipe.long_context import PARTS, clashes_of, leave_out, parts_on, switch_on
from dslm.recipe.schema import Recipe

ALL = {"model.tiled_mlp", "model.tiled_loss", "model.offload_activations"}
LONG = "model.long_context=true"
AWAY = "model.offload_activations"
# changes of a recipe with long_context, and what is left out then
LEFT: tuple[tuple[str, tuple[str, ...], set[str]], ...] = (
    ("quickstart", (), set()),
    ("quickstart", ("model.compile=true",), {"model.tiled_mlp", "model.tiled_loss"}),
    ("quickstart", ("model.liger=true",), {"model.tiled_mlp", "model.tiled_loss"}),
    ("quickstart", ("model.chunked_loss=true",), {"model.tiled_loss"}),
    ("quickstart", ("parallel.tensor=2",), {"model.tiled_loss"}),
    ("quickstart", ("model.activation_checkpointing=false",), {AWAY}),
    ("quickstart-sft", (), {"model.tiled_loss"}),
    ("quickstart-mlm", (), {"model.tiled_loss"}),
    ("quickstart-dpo", (), {"model.tiled_mlp", "model.tiled_loss"}),
)


def _recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(name, list(changes)).recipe


def test_nothing_is_on_where_nobody_asks() -> None:
    recipe, left = switch_on(_recipe("quickstart"), on_cpu=False)
    assert (parts_on(recipe), left) == ([], {})
    assert {part.key for part in PARTS} == ALL


@pytest.mark.parametrize(("name", "changes", "left_out"), LEFT)
def test_what_does_not_go_is_left_out_with_its_reason(
    name: str, changes: tuple[str, ...], left_out: set[str]
) -> None:
    recipe, left = switch_on(_recipe(name, LONG, *changes), on_cpu=False)
    assert set(left) == left_out
    assert all(left.values())
    assert {part.key for part in parts_on(recipe)} == ALL - left_out
    assert not list(clashes_of(recipe))


def test_on_a_cpu_activations_are_in_its_memory_already() -> None:
    recipe, left = switch_on(_recipe("quickstart", LONG), on_cpu=True)
    assert set(left) == {AWAY}
    assert recipe.model.offload_activations is False


@pytest.mark.parametrize("key", sorted(ALL))
def test_a_part_can_be_left_off_or_be_alone(key: str) -> None:
    without, _ = switch_on(_recipe("quickstart", LONG, f"{key}=false"), on_cpu=False)
    assert {part.key for part in parts_on(without)} == ALL - {key}
    alone, _ = switch_on(_recipe("quickstart", f"{key}=true"), on_cpu=False)
    assert {part.key for part in parts_on(alone)} == {key}


def test_what_a_model_cannot_do_is_left_out_unless_it_was_asked_for() -> None:
    why = {"model.tiled_mlp": "it has none"}
    asked = _recipe("quickstart", LONG)
    recipe, _ = switch_on(asked, on_cpu=False)
    assert leave_out(recipe, asked, why).model.tiled_mlp is False
    by_name = _recipe("quickstart", "model.tiled_mlp=true")
    with pytest.raises(RecipeError, match="it has none") as failure:
        leave_out(by_name, by_name, why)
    assert failure.value.where.key == "model.tiled_mlp"
