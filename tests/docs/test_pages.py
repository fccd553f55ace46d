"""The docs say what the code says: commands run, links lead somewhere, made pages are current."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dslm.errors import DoesNotFit
from tests.conftest import Dslm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ds_configs/README.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
HEAVY = ("train", "launch")  # run dry here; the whole run is a test of its own


def _commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_made_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    seen = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                seen += 1
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert seen >= 5


def test_the_commands_of_the_readme_run(dslm: Dslm, tmp_path: Path) -> None:
    """In the order of the page, in one folder, as a newcomer types them."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Once upon a time.\n")
    seen = [words[1:] for words in _commands(ROOT / "README.md") if words[0] == "dslm"]
    assert len(seen) >= 7
    for argv in seen:
        dry = ["--dry-run"] if argv[0] in HEAVY and "--dry-run" not in argv else []
        done = dslm(*argv, *dry)
        fits = done.returncode != DoesNotFit.exit_code  # the page is of machines with GPUs
        assert done.returncode == 0 or not fits, f"{argv}: {done.stderr}"


PURPOSES = ("sft", "lora", "qlora", "continue", "long-context")


@pytest.mark.slow
def test_the_commands_that_a_purpose_begins_with_run_on_a_laptop(
    warm: Dslm, tmp_path: Path
) -> None:
    """The first one, which all pages have, makes a small model; the others are run dry."""
    first = {tuple(_commands(ROOT / f"docs/{name}.md")[0][1:]) for name in PURPOSES}
    assert len(first) == 1
    done = warm(*first.pop(), "--set", "duration.steps=2")
    assert done.returncode == 0, done.stderr
    for name in PURPOSES:
        _, (_, *second) = _commands(ROOT / f"docs/{name}.md")
        dry = ["--dry-run"] if second[0] in HEAVY else []
        done = warm(*second, *dry)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_targets_of_make_exist(page: str) -> None:
    targets = [words[1] for words in _commands(ROOT / page) if words[0] == "make"]
    assert len(targets) >= 2
    done = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
