"""Write what the docs can take from the code: `make docs`; --check only says what is not current.

docs/recipe.md from the recipe's schema, docs/failures.md from the catalogue of failures,
docs/environment.md from dslm/environment.py, docs/errors.md from dslm/errors.py with examples that
were really run (`--examples` runs them again), the table of presets in README.md from theirs,
what docs/qlora.md says of 8 billion parameters on 24 GB from the planner, docs/matrix.md from what
`make matrix` found, ds_configs/ from scripts/ds_configs.py,
docs/cli.md from the tree of commands, dslm/zero/keys.json from the installed DeepSpeed,
transformers.json of the checks from the installed transformers and, given a run directory
(`python scripts/docs.py RUN`), the picture of the screen from its events.
"""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console

from dslm import environment, errors
from dslm.cli.screens.progress import RunScreen
from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.cluster.wrong_versions import settings_of, wrong_versions
from dslm.decide.job import resolve_job
from dslm.diagnose.catalogue import catalogue
from dslm.plan.limits import longest
from dslm.profile.store import preset_parameters
from dslm.recipe.catalog import entries, purposes, put_on, recipe_schema
from dslm.recipe.features import FEATURES
from dslm.recipe.load import load_recipe
from dslm.run.events import Step, tail_events
from dslm.units import render_bytes, render_count
from scripts import ds_configs, matrix_page
from scripts.error_examples import EXAMPLES, shown

ROOT = Path(__file__).parent.parent
QLORA = ROOT / "docs" / "qlora.md"
CONFIGS = ROOT / "ds_configs"
STRATEGIES_START = "<!-- strategies: made by make docs -->"
STRATEGIES_END = "<!-- end of strategies -->"
_STYLE = re.compile(r"<span [^>]*>(.*?)</span>")
START, END = "<!-- presets: made by make docs -->", "<!-- end of presets -->"


def recipe_page() -> str:
    """Every key of a recipe: type, default, meaning."""
    schema = recipe_schema()
    lines = [
        "# The recipe, key by key\n",
        "Made from the schema by `make docs`. `dslm recipes schema` prints it as JSON Schema,",
        "`dslm recipes show PRESET` a whole recipe. A file may have `extends: PRESET` (or a file,",
        "or a list of them): what it says itself is merged over that, key by key. Relative paths",
        "in a file are relative to that file; those of `--set` and presets to the current folder.",
        "Numbers are those of YAML 1.2 (`1e-6`, `5e8`), variables of `environment` are text.\n",
    ]
    lines += [
        "## Purposes\n",
        "Each goes with any model; the last one wins: `dslm train qwen3-8b --with sft,lora`, or",
        "`extends: [qwen3-8b, sft, lora]` in a file of your own.\n",
        "| purpose | what it is for |",
        "|---|---|",
        *(f"| `{each.name}` | {each.description} |" for each in purposes()),
        "",
    ]
    top = {k: v for k, v in schema["properties"].items() if k != "extends"}
    lines += ["## Top level\n", *_table(top, schema)]
    for name, field in top.items():
        section = _section(field, schema)
        if section is not None:
            lines += [f"\n## `{name}`\n", section["description"] + "\n"]
            lines += _table(section["properties"], schema)
    return "\n".join(lines) + "\n"


def _section(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    options = [field, *field.get("allOf", []), *field.get("anyOf", [])]
    for option in options:
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rpartition("/")[2]]
            return found
    return None


def _table(fields: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        said = field.get("description") or (_section(field, schema) or {}).get("description", "")
        text = " ".join(said.split()).replace("|", "\\|")
        default = field.get("default")
        shown = "" if default is None or isinstance(default, dict) else f"`{default}`"
        rows.append(f"| `{name}` | {_type(field, schema)} | {shown} | {text} |")
    return rows


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in field:
        return "mapping"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        kinds = [_type(option, schema) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    names = {"integer": "whole number", "object": "mapping", "array": "list", "string": "text"}
    kind: str = field.get("type", "")
    return names.get(kind, kind)


def preset_table() -> str:
    """The presets as a Markdown table, a row a family, the smallest first."""
    rows = ["| family | presets, with their parameters |", "|---|---|"]
    sizes = preset_parameters()
    by_size = sorted(entries(), key=lambda preset: (preset.family, sizes[preset.name], preset.name))
    for family, presets in itertools.groupby(by_size, key=lambda preset: preset.family):
        named = (f"`{preset.name}` {render_count(sizes[preset.name])}" for preset in presets)
        rows.append(f"| {family} | {', '.join(named)} |")
    return "\n".join(rows)


def put_in(page: Path, start: str, made: str, end: str) -> str:
    """A page with what is made put between two marks."""
    before, _, rest = page.read_text().partition(start)
    return f"{before}{start}\n\n{made}\n\n{end}{rest.partition(end)[2]}"


PLAN_START, PLAN_END = "<!-- plan: made by make docs -->", "<!-- end of plan -->"
STORY = "llama-3.1-8b-instruct"  # on one GPU of 24 GB; its profile with adapters ships


def plan_table() -> str:
    """8 billion parameters on one GPU of 24 GB: all of them trained, adapters, in few bits."""
    rows = [
        "| `--with` | fits | peak | parameters | gradients, optimizer | activations, logits "
        "| micro batch | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cluster = Cluster(hosts=(Host("localhost", 1),), device=device_named("rtx-4090"))
    for purpose in ("", "lora", "qlora"):
        job = resolve_job(load_recipe(STORY, put_on([purpose])), cluster)
        choice = job.plan.choice
        memory, step = choice.memory, choice.time
        if memory is None or step is None or job.profile is None:
            raise LookupError(f"{STORY} can't be planned")
        parts = (
            memory.total, memory.parameters, memory.gradients + memory.optimizer,
            memory.activations + memory.logits,
        )  # fmt: skip
        speed = job.recipe.batch.global_size * job.recipe.data.sequence_length / step.step_seconds
        cells = [f"`{purpose}`" if purpose else "", "yes" if choice.fits else "no"]
        cells += [render_bytes(part) for part in parts]
        cells += [str(choice.strategy.micro_batch_size), f"{speed:,.0f}" if choice.fits else ""]
        rows.append(f"| {' | '.join(cells)} |")
        found = longest(job.recipe, cluster, job.profile)
    if found is not None:
        rows.append(f"\nWith `qlora` sequences of up to {found[0]:,} tokens fit.")
    return "\n".join(rows)


FEATURES_START, FEATURES_END = "<!-- features: made by make docs -->", "<!-- end of features -->"


def layouts(text: str) -> str:
    """A page with the table of features put in."""
    rows = ["| key | what | stages | offload | device | tasks |", "|---|---|---|---|---|---|"]
    for each in FEATURES:
        device = "CUDA" if each.cuda else "an accelerator" if each.accelerator else "any"
        stages = ", ".join(map(str, each.stages))
        cells = (", ".join(each.offloads) or "any", device, ", ".join(each.tasks) or "any")
        rows.append(f"| `{each.key}` | {each.what} | {stages} | {' | '.join(cells)} |")
    before, _, rest = text.partition(FEATURES_START)
    table, after = "\n".join(rows), rest.partition(FEATURES_END)[2]
    return f"{before}{FEATURES_START}\n\n{table}\n\n{FEATURES_END}{after}"


HOUSE_START, HOUSE_END = "<!-- house: made by make docs -->", "<!-- end of house -->"


def house(text: str) -> str:
    """A page with the packages and the arrows between them put in, as the imports have them."""
    arrows = {package: _imports(ROOT / "dslm" / package) for package in _packages()}
    lines = ["```mermaid", "graph TD"]
    for package, below in sorted(arrows.items()):
        through = {far for near in below for far in _reached(near, arrows)}
        lines += [f"    {package} --> {near}" for near in sorted(below - through)]
        if package not in set().union(*arrows.values()) and not below:
            lines.append(f"    {package}")
    before, _, rest = text.partition(HOUSE_START)
    drawn = "\n".join([*lines, "```"])
    return f"{before}{HOUSE_START}\n\n{drawn}\n\n{HOUSE_END}{rest.partition(HOUSE_END)[2]}"


VERSIONS_START = "<!-- wrong versions: made by make docs -->"
VERSIONS_END = "<!-- end of wrong versions -->"


def wrong_versions_in(text: str) -> str:
    """A page with the catalogue of known wrong versions put in."""
    lines = ["| id | package | versions | what goes wrong | source |", "|---|---|---|---|---|"]
    for entry in wrong_versions():
        bounds = (("from", entry.first), ("before", entry.below))
        versions = " ".join(f"{word} {version}" for word, version in bounds if version)
        repository, number = entry.source.split("/")[4], entry.source.rpartition("/")[2]
        name = f"#{number}" if number.isdigit() else number.partition("#")[0]
        lines.append(
            f"| `{entry.id}` | {entry.package} | {versions or 'all'} | {entry.wrong} "
            f"({settings_of(entry)}) | [{repository} {name}]({entry.source}) |"
        )
    before, _, rest = text.partition(VERSIONS_START)
    made = "\n".join(lines)
    return f"{before}{VERSIONS_START}\n{made}\n{VERSIONS_END}{rest.partition(VERSIONS_END)[2]}"


def _packages() -> set[str]:
    return {init.parent.name for init in (ROOT / "dslm").glob("*/__init__.py")}


def _imports(folder: Path) -> set[str]:
    """The other packages that the modules of one import, anywhere in them."""
    packages = _packages()
    found: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dslm."):
                found.add(str(node.module).split(".")[1])
    return (found & packages) - {folder.name}


def _reached(package: str, arrows: dict[str, set[str]]) -> set[str]:
    return {far for near in arrows[package] for far in {near, *_reached(near, arrows)}}


def environment_page() -> str:
    """Every environment variable that dslm reads or sets, with its sentence."""
    lines = [
        "# Environment variables\n",
        "Made from dslm/environment.py by `make docs`. What to train is said in a recipe, never\n"
        "here.\n",
        "| variable | what it is |",
        "|---|---|",
    ]
    body = ast.parse(inspect.getsource(environment)).body
    for statement, after in itertools.pairwise(body):
        match statement, after:
            case (
                ast.Assign(value=ast.Constant() | ast.Tuple() as value),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                names = (f"`{node.value!s}`" for node in ast.walk(value) if _is_text(node))
                lines.append(f"| {', '.join(names)} | {' '.join(text.split())} |")
    return "\n".join(lines) + "\n"


def _is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def cli_page() -> str:
    """Every command with its options, as Typer renders them."""
    typer = [sys.executable, "-m", "typer", "dslm.cli.app", "utils", "docs", "--name", "dslm"]
    made = subprocess.run(
        [*typer, "--title", "Commands"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return _STYLE.sub(r"\1", made).rstrip() + "\n"


def failures_page() -> str:
    """Every failure that dslm recognises, with its cause and fix."""
    lines = [
        "# Failures\n",
        "Made from dslm/diagnose/failures.yaml by `make docs`. When an attempt fails, dslm\n"
        "searches the output of the rank that failed first for these; the first in this order\n"
        "counts. A star: the same command may work the next time.\n",
        "| failure | stage | cause | fix |",
        "|---|---|---|---|",
    ]
    for failure in catalogue():
        star = " *" if failure.retry else ""
        remedy = failure.remedy.replace("|", "\\|")
        lines.append(f"| {failure.id}{star} | {failure.stage} | {failure.cause} | {remedy} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Exit codes and types of errors, each with its sentence and what a command really said."""
    kinds = list(_error_kinds(errors.DslmError))
    leaves = [kind for kind in kinds if not kind.__subclasses__()]
    lines = [
        "# Errors and exit codes\n",
        "Made from dslm/errors.py by `make docs`; the examples are real answers. An\n"
        "error goes to stderr: what is wrong and where, then a hint; `--debug` shows a traceback.\n"
        "Any other exception is a bug in dslm: exit code 1, and a line that says so.\n",
        "| exit code | meaning | errors |",
        "|---|---|---|",
        "| 0 | Done. | |",
    ]
    by_code: dict[int, list[type[errors.DslmError]]] = {}
    for kind in kinds:
        by_code.setdefault(kind.exit_code, []).append(kind)
    for code, found in sorted(by_code.items()):
        names = ", ".join(f"`{kind.__name__}`" for kind in found if kind in leaves)
        lines.append(f"| {code} | {inspect.getdoc(found[0])} | {names} |")
    recorded = _recorded_examples()
    for kind in leaves:
        name = kind.__name__
        lines += [f"\n## `{name}`: exit code {kind.exit_code}\n", f"{inspect.getdoc(kind)}\n"]
        if name not in recorded:
            recorded[name] = shown(next(each for each in EXAMPLES if each.error == name))
        lines += ["```console", recorded[name], "```"]
    return "\n".join(lines) + "\n"


def _error_kinds(kind: type[errors.DslmError]) -> Iterator[type[errors.DslmError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _error_kinds(below)


def _recorded_examples() -> dict[str, str]:
    """The examples of the page as it stands; none when they are to be run again."""
    page = ROOT / "docs" / "errors.md"
    if "--examples" in sys.argv or not page.is_file():
        return {}
    pattern = r"^## `(\w+)`[^\n]*\n\n[^\n]*\n\n```console\n(.*?)\n```$"
    return dict(re.findall(pattern, page.read_text(), flags=re.MULTILINE | re.DOTALL))


def made_by(module: str) -> str:
    """A JSON file as a module of the worker makes it; its libraries print when imported."""
    made = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return made[made.index("{") :]


def draw_screen(run: Path) -> None:
    """docs/screen.svg: what a terminal shows in the middle of a run, from its own events."""
    events = tail_events(run / "events.jsonl").events
    steps = [event for event in events if isinstance(event, Step)]
    last = steps[2 * len(steps) // 3]
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print("$ dslm train quickstart", style="bold")
    screen = RunScreen(console, name="quickstart", live=True, clock=lambda: last.time)
    for event in events[: events.index(last) + 1]:
        screen.event(event)
    console.print(screen)
    console.save_svg(str(ROOT / "docs" / "screen.svg"), title="dslm")


def main() -> None:
    """Write or check."""
    pages = {
        ROOT / "docs" / "recipe.md": recipe_page(),
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "docs" / "environment.md": environment_page(),
        ROOT / "docs" / "failures.md": failures_page(),
        ROOT / "docs" / "errors.md": errors_page(),
        ROOT / "dslm" / "zero" / "keys.json": made_by("dslm.worker.deepspeed_keys"),
        ROOT / "dslm" / "decide" / "checks" / "transformers.json": made_by(
            "dslm.worker.transformers_facts"
        ),
        ROOT / "docs" / "design" / "0005-the-house.md": house(
            (ROOT / "docs" / "design" / "0005-the-house.md").read_text()
        ),
        ROOT / "docs" / "verify.md": wrong_versions_in((ROOT / "docs" / "verify.md").read_text()),
        ROOT / "docs" / "layouts.md": layouts((ROOT / "docs" / "layouts.md").read_text()),
        ROOT / "README.md": put_in(ROOT / "README.md", START, preset_table(), END),
        ROOT / "docs" / "matrix.md": matrix_page.page(),
        CONFIGS / "README.md": put_in(
            CONFIGS / "README.md", STRATEGIES_START, ds_configs.table(), STRATEGIES_END
        ),
        **{CONFIGS / name: text for name, text in ds_configs.files().items()},
        QLORA: put_in(QLORA, PLAN_START, plan_table(), PLAN_END),
    }
    if "--check" in sys.argv:
        old = [
            str(page.relative_to(ROOT))
            for page, text in pages.items()
            if not page.is_file() or page.read_text() != text
        ]
        sys.exit(f"not current: {', '.join(old)}: run `make docs`" if old else 0)
    for path, text in pages.items():
        path.write_text(text)
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        draw_screen(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
