"""Functions stay small: at most 60 lines and 8 parameters, the signatures of verbs aside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES, MOST_PARAMETERS = 60, 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    for below in ast.iter_child_nodes(node):
        if isinstance(below, Function):
            yield prefix + below.name, below
            yield from functions(below, f"{prefix}{below.name}.")
        elif isinstance(below, ast.ClassDef):
            yield from functions(below, f"{prefix}{below.name}.")
        else:
            yield from functions(below, prefix)


def size(function: Function, *, verb: bool) -> tuple[int, int]:
    """Lines and parameters; of a verb, the lines below its help, and no parameters."""
    given = function.args
    parameters = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    parameters = [name for name in parameters if name not in ("self", "cls")]
    first = function.body[1].lineno if verb and len(function.body) > 1 else function.lineno
    assert function.end_lineno is not None
    return function.end_lineno - first + 1, 0 if verb else len(parameters)


def measured() -> dict[str, tuple[int, int]]:
    found = {}
    for file in sorted((ROOT / "dslm").rglob("*.py")):
        name = str(file.relative_to(ROOT / "dslm"))
        for path, function in functions(ast.parse(file.read_text())):
            annotated = " ".join(
                ast.unparse(a.annotation) for a in function.args.args if a.annotation is not None
            )
            verb = name.startswith("cli/") and "options." in annotated
            found[f"{name}:{path}"] = size(function, verb=verb)
    return found


def test_no_function_is_long_or_has_many_parameters() -> None:
    found = measured()
    assert len(found) > 900
    large = {
        name: each
        for name, each in found.items()
        if each[0] > MOST_LINES or each[1] > MOST_PARAMETERS
    }
    assert large == {}


def test_how_to_add_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    text = text[text.index("## How to add") : text.index("## Commands")]
    named = [n for n in re.findall(r"`((?:dslm|tests|docs)/[^`]+)`", text) if "NAME" not in n]
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_walk_of_a_recipe_has_at_most_ten_true_stops() -> None:
    page = (ROOT / "docs" / "design" / "0005-the-house.md").read_text()
    stops = re.findall(r"^\d+\. `(dslm/[^`]+)` — `(\w+)`", page, re.MULTILINE)
    assert 5 < len(stops) <= 10
    before = ""
    for file, function in stops:
        text = (ROOT / file).read_text()
        assert f"def {function}(" in text, (file, function)
        started = file.removesuffix(".py").replace("/", ".")  # a program is started by its name
        called = re.search(rf"\b{function}\(", before) or f'"{started}"' in before
        assert called or not before, f"no stop before it leads to {file}"
        before += text


def test_a_page_of_the_design_has_a_number_of_its_own() -> None:
    pages = sorted((ROOT / "docs" / "design").glob("*.md"))
    assert len(pages) > 5
    for number, page in enumerate(pages, 1):
        assert page.name.startswith(f"{number:04}-")
        assert page.read_text().startswith(f"# {number}. ")
