"""What only some recipes need is asked for by name, before anything starts."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from dslm.errors import RecipeError
from dslm.recipe.extras import EXTRAS, check_extras
from dslm.recipe.load import load_recipe

NEEDS = [
    ("quickstart-sft", [], "trl", "dslm[trl]"),
    *(
        (f"quickstart-{task}", [], "trl", "dslm[trl]")
        for task in ("dpo", "orpo", "kto", "reward", "grpo")
    ),
    ("quickstart-grpo", ["rollout.engine=vllm"], "vllm", "dslm[vllm]"),
    ("quickstart", ["lora={}"], "peft", "dslm[lora]"),
    ("quickstart", ["quantize=nf4"], "bitsandbytes", "dslm[quantize]"),
    ("quickstart-vision", [], "PIL", "dslm[metrics]"),
    ("quickstart-vision", [], "sklearn", "dslm[metrics]"),
]


@pytest.mark.parametrize(("preset", "overrides", "module", "hint"), NEEDS)
def test_a_missing_package_is_named_with_the_way_to_get_it(
    preset: str, overrides: list[str], module: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(preset, overrides).recipe
    if importlib.util.find_spec(module) is not None:
        check_extras(recipe)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RecipeError) as caught:
        check_extras(recipe)
    assert hint in caught.value.hint
    assert "is not installed" in caught.value.message
    check_extras(load_recipe("quickstart", []).recipe)


def test_every_extra_is_looked_at() -> None:
    assert {extra.module for extra in EXTRAS} == {module for _, _, module, _ in NEEDS}
