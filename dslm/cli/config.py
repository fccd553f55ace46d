"""`dslm config`: the DeepSpeed config of a recipe and its reasons; the linter of any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dslm.cli import complete, options, terminal
from dslm.errors import Finding
from dslm.units import number_of

if TYPE_CHECKING:
    from dslm.zero.generate import ResolvedConfig

_MOST_SHOWN = 20  # findings on a screen


def config(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A preset's name or a YAML file.",
            autocompletion=complete.recipes,
        ),
    ] = None,
    model: options.Model = None,
    with_: options.With = None,
    set_: options.Set = None,
    num_gpus: options.NumGpus = None,
    device: options.Device = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where each value comes from, and why.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="FILE", help="Check any DeepSpeed JSON for mistakes."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print the DeepSpeed config that a recipe becomes, or check one that you have.

    [dim]Examples:[/dim]

        dslm config llama-3.2-1b --num-gpus 8 --device h100-80gb > ds_config.json

        dslm config llama-3.2-1b --explain

        dslm config --check ds_config.json
    """
    from dslm.errors import OptionError

    if (recipe is None and model is None) == (check is None):
        raise OptionError(
            "give a recipe, or `--check FILE`", hint="such as `dslm config gpt2-124m`"
        )
    if check is not None:
        options.refuse_ignored(
            {
                "--model": model,
                "--with": with_,
                "--set": set_,
                "--num-gpus": num_gpus,
                "--device": device,
                "--explain": explain,
            },
            "with `--check`: the file is checked as it is",
        )
        _check(check, json)
        return
    from dslm.cluster.detect import local_cluster
    from dslm.decide.checks.base import Verb
    from dslm.decide.checks.every import Asking
    from dslm.decide.made_for import made_for, marked
    from dslm.decide.place import planned_cluster
    from dslm.decide.ready import ready_job
    from dslm.recipe.load import load_recipe

    loaded = load_recipe(*options.recipe_of(recipe, model, set_, with_))
    ranks = loaded.recipe.parallel.ranks
    if device is None:
        cluster = local_cluster(num_gpus=num_gpus, ranks=ranks)
    else:
        cluster = planned_cluster(gpus=num_gpus, hosts=1, device=device, hostfile=None, ranks=ranks)
    asking = Asking(verb=Verb.CONFIG, here=device is None)
    with terminal.busy_when_told() as told:
        config = ready_job(loaded, cluster, asking, on_phase=told).config
    how = "`--device NAME` generates it for another, such as h100-80gb"
    terminal.say(
        f"made for {made_for(cluster)}"
        + (f", the devices of this machine; {how}" if device is None else "")
    )
    if not explain:
        terminal.write_json(marked(config.values, made_for(cluster)))
        return
    _explain(config, loaded.name, json=json)


def _explain(config: ResolvedConfig, recipe: str, *, json: bool) -> None:
    """Show where each value comes from, and why."""
    from dslm.zero.generate import explain as rows_of

    rows = rows_of(config)
    if json:
        terminal.write_json(
            [dict(zip(("key", "value", "source", "reason"), row, strict=True)) for row in rows]
        )
        return
    from rich.table import Table

    table = Table("key", "value", "source", "reason", box=None, header_style="bold")
    table.columns[0].overflow = "fold"
    terminal.say(f"ds_configs/{config.preset}.json, resolved for {recipe}")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    terminal.show(table)


def _check(file: Path, json: bool) -> None:
    """Lint a DeepSpeed JSON; exit 2 when it holds an error."""
    from dslm.decide.made_for import mark_of
    from dslm.errors import ConfigError, Where
    from dslm.zero.lint import lint
    from dslm.zero.read import read_config

    config = read_config(file)
    findings = lint(config.values, file=file, lines=config.lines)
    errors = [finding for finding in findings if finding.severity == "error"]
    if json:
        terminal.write_json(
            [
                {
                    "path": finding.where.key,
                    "line": finding.where.line,
                    "severity": finding.severity,
                    "rule": finding.rule,
                    "message": finding.message,
                    "hint": finding.hint,
                }
                for finding in findings
            ]
        )
        if errors:
            raise typer.Exit(ConfigError.exit_code)
        return
    _show(findings)
    if (mark := mark_of(config.values)) is not None:
        terminal.say(f"made for {mark}")
    if errors:
        raise ConfigError(f"{number_of(len(errors), 'error')} found", where=Where(file=file))
    terminal.say(
        f"{file}: no errors" + (f", {number_of(len(findings), 'warning')}" if findings else "")
    )


def _show(findings: list[Finding]) -> None:
    """The first findings, as many as a person reads, and how many more there are."""
    from rich.text import Text

    for finding in findings[:_MOST_SHOWN]:
        style = "bold red" if finding.severity == "error" else "yellow"
        terminal.say(
            Text.assemble((finding.severity, style), f": {finding.where}: {finding.message}")
        )
        if finding.hint:
            terminal.say(Text.assemble(("  hint: ", "cyan"), finding.hint))
    more = findings[_MOST_SHOWN:]
    errors = sum(finding.severity == "error" for finding in more)
    if more:
        parts = [number_of(errors, "error")] if errors else []
        parts += [number_of(len(more) - errors, "warning")] if len(more) > errors else []
        terminal.say(f"and {' and '.join(parts)} more: `--json` gives them all")
