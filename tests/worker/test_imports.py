"""What a rank imports: all that its training needs, and not the seconds that it doesn't."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dslm.recipe.load import load_recipe
from dslm.worker.imports import unused

_RANK = """
import json, sys
sys.modules["mlflow"] = None  # DeepSpeed's autotuner imports it, and it imports pandas
from dslm.recipe.load import load_recipe
from dslm.worker.imports import import_libraries
recipe = load_recipe("quickstart", []).recipe
import_libraries(recipe)
import torch
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer
import dslm.worker.train
late = ("datasets", "pandas", "peft", "trl", "torch._inductor.compile_fx")
loaded = [name for name in late if name in sys.modules]
import datasets, peft
from deepspeed.runtime.zero.muon import original_muon
asked = []
torch.compile = lambda function: asked.append(function.__name__) or function
update = original_muon.muon_update(torch.eye(4), torch.zeros(4, 4))
print(json.dumps([loaded, asked, update.shape]))
"""


def test_a_rank_of_plain_training_loads_neither_datasets_nor_adapters_nor_a_compiler() -> None:
    """What is put off is there for whoever asks for it; Muon is compiled when it is first used."""
    done = subprocess.run([sys.executable, "-c", _RANK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, compiled, shape = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    assert "muon_update" in compiled
    assert shape == [4, 4]


@pytest.mark.parametrize(
    ("recipe", "overrides", "absent"),
    [
        ("quickstart", [], {"datasets", "peft"}),
        ("quickstart", ["lora.rank=4"], set()),
        ("quickstart-dpo", [], set()),
        ("llama-3.2-1b", [], {"datasets"}),  # which may be a folder of adapters
    ],
)
def test_what_a_task_needs_is_not_taken_for_absent(
    recipe: str, overrides: list[str], absent: set[str]
) -> None:
    assert set(unused(load_recipe(recipe, overrides).recipe)) == absent
