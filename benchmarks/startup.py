"""Start-up: dslm's verbs against the same tree of commands with empty bodies."""

from __future__ import annotations

import subprocess
import sys
import time

REPEATS = 15


def _empty_tree() -> str:
    """A Typer app with the same commands and options as dslm, made of its own signatures."""
    import inspect

    from dslm.cli.app import app

    lines = [
        "import typer, pathlib, sys",
        "from pathlib import Path",
        "from typing import Annotated",
        "app = typer.Typer(no_args_is_help=True, rich_markup_mode='rich')",
        "@app.callback()",
        "def root(version: bool = False, debug: bool = False): pass",
    ]
    number = 0

    def command(where: str, name: str, function: object) -> None:
        nonlocal number
        number += 1
        parameters = []
        for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
            text = str(parameter.annotation)
            kind = next((k for k in ("bool", "int", "Path") if k in text), "str")
            default = "None" if kind != "bool" else "False"
            parameters.append(f"{parameter.name}: {kind} = {default}")
        lines.append(f"def command_{number}({', '.join(parameters)}):\n    '''Do it.'''")
        lines.append(f"{where}.command({name!r})(command_{number})")

    for entry in app.registered_commands:
        if entry.name and entry.callback:
            command("app", entry.name, entry.callback)
    for index, group in enumerate(app.registered_groups):
        lines.append(f"group_{index} = typer.Typer(help='A group.')")
        for entry in group.typer_instance.registered_commands if group.typer_instance else []:
            if entry.name and entry.callback:
                command(f"group_{index}", entry.name, entry.callback)
        lines.append(f"app.add_typer(group_{index}, name={group.name!r})")
    lines.append("app()")
    return "\n".join(lines)


def _seconds(argv: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True)
    return time.perf_counter() - start


def report() -> str:
    """The table: the fastest of alternating runs, which other work disturbs least."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "empty_tree.py"
        tree.write_text(_empty_tree())
        dslm = str(Path(sys.executable).parent / "dslm")
        rows = {
            "the same tree, empty bodies, `--help`": [sys.executable, str(tree), "--help"],
            "`dslm --help`": [dslm, "--help"],
            "`dslm recipes list`": [dslm, "recipes", "list"],
            "`dslm config llama-3.2-1b`": [dslm, "config", "llama-3.2-1b"],
            "`dslm plan llama-3.2-1b`": [dslm, "plan", "llama-3.2-1b", "--gpus", "8"],
        }
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(REPEATS):
            for name, argv in rows.items():
                times[name].append(_seconds(argv))
    base = min(times["the same tree, empty bodies, `--help`"])
    lines = [
        "## Start-up\n",
        f"The fastest of {REPEATS} alternating runs.\n",
        "| command | seconds | ratio | more than the empty tree |",
        "|---|---|---|---|",
    ]
    for name, values in times.items():
        best = min(values)
        lines.append(f"| {name} | {best:.3f} | {best / base:.2f}× | {best - base:+.3f} s |")
    return "\n".join(lines) + "\n"
