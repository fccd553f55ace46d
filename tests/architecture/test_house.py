"""The rules of the house that a machine can hold: no heavy import in a light verb, no long file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "deepspeed", "accelerate", "datasets")
LIGHT_VERBS = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["train", "quickstart", "--dry-run"],
    ["recipes", "list"],
    ["recipes", "show", "llama-3.1-8b"],
    ["recipes", "schema"],
    ["config", "llama-3.2-1b"],
    ["config", "llama-3.2-1b", "--explain"],
    ["config", "--check", "ds_configs/zero2.json"],
    ["plan", "llama-3.1-8b", "--gpus", "16"],
    ["hosts", "show", "hostfiles/two-nodes"],
    ["runs", "list"],
]


@pytest.mark.parametrize("verb", LIGHT_VERBS, ids=" ".join)
def test_a_verb_that_does_not_train_loads_nothing_heavy(verb: list[str]) -> None:
    code = (
        "import sys\n"
        "from dslm.cli.app import main\n"
        f"sys.argv = ['dslm', *{verb!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_does_not_load_pydantic() -> None:
    code = (
        "import sys\nfrom dslm.cli.app import main\nsys.argv = ['dslm', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_no_module_is_longer_than_five_hundred_lines() -> None:
    files = sorted((ROOT / "dslm").rglob("*.py"))
    assert len(files) > 40
    long = {str(f): n for f in files if (n := len(f.read_text().splitlines())) > 500}
    assert not long


def test_every_module_says_what_it_is() -> None:
    silent = [str(f) for f in (ROOT / "dslm").rglob("*.py") if not f.read_text().startswith('"""')]
    assert not silent


MOST_ANY = 79  # lines; they may only become fewer


def test_any_is_named_on_few_lines_outside_the_worker() -> None:
    files = [f for f in (ROOT / "dslm").rglob("*.py") if ROOT / "dslm" / "worker" not in f.parents]
    assert len(files) > 100
    lines = [line for f in files for line in f.read_text().splitlines()]
    named = sum(bool(re.search(r"\bAny\b", line)) for line in lines)
    assert named <= MOST_ANY


def test_the_steps_of_a_script_are_reported_without_loading_deepspeed() -> None:
    code = "import sys, dslm.worker.steps; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
