"""`make mutants`: break the code in small ways; a test notices each, or a list says why none does.

mutmut makes the mutants and runs the tests that execute them, of those that are about their module
(`OWN`): what only a test of something else notices is no promise of a test. `[tool.mutmut]` of
pyproject.toml names the modules and the tests. What no test notices, the types may (`make check`).
What survives both must stand in tests/mutants.yaml with a reason, and what stands there must
survive: so the list is read again when code or tests change. Words in quotes are left alone: whole
texts are held by files below tests/golden.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from mutmut import __main__ as mutmut
from mutmut.mutation import file_mutation, mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

EXPLAINED = Path(__file__).parent.parent / "tests" / "mutants.yaml"
NOTICED = {"killed", "timeout", "segfault", "suspicious", "mistyped"}
# module, or the package of it -> the tests that are about it
OWN = {
    "dslm.worker.data": ("tests/worker/test_order.py",),
    "dslm.decide.checks": (
        "tests/decide/test_judges.py", "tests/decide/test_asking.py", "tests/decide/test_facts.py",
    ),
    "dslm.reach.checks": ("tests/reach/test_checks.py",),
    "dslm.cluster.select": ("tests/cluster/test_select.py",),
    "dslm.zero.lint": ("tests/zero/test_lint.py",),
    "dslm.plan.ledger": ("tests/plan/test_ledger.py",),
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Mutant:
    """A change of one function: the lines taken out and put in."""

    file: str
    function: str
    change: str

    def __str__(self) -> str:
        return f"{self.file}, {self.function}:\n{self.change}"


def forget() -> None:
    """Forget what survived, and which test executes what: tests may have been written since."""
    Path("mutants", "mutmut-stats.json").unlink(missing_ok=True)
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        if not data.meta_path.exists():
            continue
        data.load()
        for name, code in data.exit_code_by_key.items():
            if status_by_exit_code[code] not in NOTICED:
                data.exit_code_by_key[name] = None
        data.save()


def run(names: list[str], children: int) -> None:
    """Make the mutants that there aren't yet, and try them and those that survived."""
    forget()
    operators = mutators.mutation_operators
    kept = [pair for pair in operators if pair[1] is not mutators.operator_string]
    vars(file_mutation)["mutation_operators"] = kept
    collect = mutmut.collect_or_load_stats

    def collect_own(*given: object, **more: object) -> None:
        collect(*given, **more)
        for function, tests in state().tests_by_mangled_function_name.items():
            own = next((files for name, files in OWN.items() if function.startswith(name)), ())
            tests.intersection_update({test for test in tests if test.startswith(own)})

    vars(mutmut)["collect_or_load_stats"] = collect_own
    mutmut._run(names, children)


def tried() -> Iterator[tuple[Mutant, str]]:
    """Return every mutant that was tried and what became of it."""
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        found = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        found = {name: status for name, status in found.items() if status != "not checked"}
        mistyped = _mistyped(path) if {*found.values()} - NOTICED else set()
        for name, status in found.items():
            mutated = name.rpartition(".")[2]
            if status not in NOTICED and mutated in mistyped:
                status = "mistyped"
            function = mutated.partition("__mutmut")[0].removeprefix("x_")
            change = "" if status in NOTICED else _change(name, path)
            yield Mutant(str(path), function, change), status


def _mistyped(path: Path) -> set[str]:
    """Return the names of mutated functions of a file that mypy refuses."""
    folder = Path("mutants")
    argv = [sys.executable, "-m", "mypy", "--output", "json", str(path)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    lines = {
        error["line"]
        for error in map(json.loads, done.stdout.splitlines())
        if error["severity"] == "error" and error["file"] == str(path)
    }
    functions = ast.walk(ast.parse((folder / path).read_text(encoding="utf-8")))
    return {
        node.name
        for node in functions
        if isinstance(node, ast.FunctionDef)
        and any(node.lineno <= line <= (node.end_lineno or 0) for line in lines)
    }


def _change(name: str, path: Path) -> str:
    lines = get_diff_for_mutant(name, path=path).splitlines()
    kept = (line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in kept)


def explained() -> dict[Mutant, str]:
    """Return the mutants that no test needs to notice, and why."""
    found = yaml.safe_load(EXPLAINED.read_text(encoding="utf-8")) or {}
    return {
        Mutant(file, one["function"], one["change"].strip()): one["why"]
        for file, ones in found.items()
        for one in ones
    }


def main() -> int:
    """Run them, and compare with the list."""
    parser = argparse.ArgumentParser(description="Break the code; tests must notice.")
    parser.add_argument("names", nargs="*", help="mutants, as mutmut names them; patterns")
    parser.add_argument("--children", type=int, default=2, help="mutants tried at once")
    parser.add_argument("--only-report", action="store_true", help="what earlier runs found")
    given = parser.parse_args()
    if not given.only_report:
        run(given.names, given.children)
    found = list(tried())
    files = {mutant.file for mutant, _ in found}
    survived = {mutant for mutant, status in found if status not in NOTICED}
    known = {mutant: why for mutant, why in explained().items() if mutant.file in files}
    for title, mutants in (
        ("no test notices, and nothing explains:", survived - {*known}),
        ("is explained in tests/mutants.yaml, and a test notices it or it is gone:",
         {*known} - survived),
    ):  # fmt: skip
        for mutant in sorted(mutants):
            print(f"{title} {mutant}\n")
    noticed = sum(status in NOTICED for _, status in found)
    print(
        f"{len(found)} mutants, {noticed} noticed, {len(survived)} not, of which "
        f"{len(survived & {*known})} are explained"
    )
    return int(survived != {*known})


if __name__ == "__main__":
    sys.exit(main())
