"""Adapters are put on modules that are there, or the recipe is refused with what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from dslm.cluster.detect import local_cluster
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.ready import ready_job
from dslm.errors import RecipeError
from dslm.recipe.load import load_recipe
from dslm.worker.adapter_targets import check_targets


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(4, 4)
        self.c_attn = Conv1D(4, 4)
        self.norm = torch.nn.LayerNorm(4)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([_Block(), _Block()])
        self.embed = torch.nn.Embedding(8, 4)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj"], ["c_attn", "embed"], ["layers.17.q_proj"], ["layers.0.c_attn"],
     r".*\.(q_proj|c_attn)", r"layers\.1\..*"],
)  # fmt: skip
def test_modules_that_are_there_are_taken(targets: str | list[str]) -> None:
    check_targets(_Model(), {"target_modules": targets})


@pytest.mark.parametrize(
    ("targets", "wrong", "near"),
    [
        (["q_prj"], "`q_prj`", "did you mean `q_proj`?"),
        # peft itself trains on without the name that matches nothing
        (["q_proj", "c_atn"], "`c_atn`", "did you mean `c_attn`?"),
        (["nope", "layers"], "`nope` or `layers`", "there are: c_attn, embed, q_proj"),
        (["norm"], "`norm`", "there are:"),  # nothing to multiply with
        (["proj"], "`proj`", "did you mean `q_proj`?"),  # the end of a word is no name
    ],
)
def test_names_of_nothing_are_refused_with_the_nearest(
    targets: list[str], wrong: str, near: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        check_targets(_Model(), {"target_modules": targets})
    assert refused.value.message == f"no module of the model is named {wrong}"
    assert near in refused.value.hint
    assert refused.value.where.key == "lora.target_modules"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("target_modules", r"q_proj", "matches `q_proj`"),  # a regular expression is of whole names
        ("exclude", ["q_prj"], "is named `q_prj`"),
        ("exclude", r".*\.k_proj", "matches `.*\\.k_proj`"),
        ("modules_to_save", ["head"], "is named `head`"),
        ("rank_pattern", {"q_proj": 2, "q_prj": 4}, "matches `q_prj`"),
        ("alpha_pattern", {r"layers.7.*": 4.0}, "matches `layers.7.*`"),
    ],
)
def test_so_are_exceptions_and_patterns_of_nothing(key: str, value: object, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        check_targets(_Model(), {"target_modules": "all-linear", key: value})
    assert refused.value.message == f"no module of the model {said}"
    assert refused.value.where.key == f"lora.{key}"
    good = {"exclude": ["q_proj"], "modules_to_save": ["embed", "layers.1"],
            "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers.1.c_attn": 1.0}}  # fmt: skip
    check_targets(_Model(), {"target_modules": "all-linear", **good})


def test_a_recipe_is_refused_before_anything_starts_at_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "extends: smollm2-135m\ndata: {train: x.jsonl}\nlora:\n  target_modules: [k_prj]\n"
    )
    loaded = load_recipe(str(file), [])
    with pytest.raises(RecipeError, match="`k_prj`") as refused:
        ready_job(loaded, local_cluster(ranks=1), Asking(verb=Verb.CONFIG))
    assert refused.value.where.line == 4
    assert "did you mean `k_proj`?" in refused.value.hint
