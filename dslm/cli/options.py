"""Options that several verbs share, declared once: the same name and the same help everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A preset's name or a YAML file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe."),
]
NumGpus = Annotated[
    int | None,
    typer.Option("--num-gpus", min=1, help="Ranks per host; default: every accelerator."),
]
Include = Annotated[
    str | None,
    typer.Option("--include", metavar="SPEC", help="Use only these: `localhost:0,2`."),
]
Exclude = Annotated[
    str | None,
    typer.Option("--exclude", metavar="SPEC", help="Use all but these: `localhost:1`."),
]
MasterPort = Annotated[
    int | None,
    typer.Option(
        "--master-port", min=1, max=65535, help="Port where the ranks meet; default: a free one."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Run directory; default: runs/RECIPE-TIME."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be run; write and start nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on although the plan says that it does not fit.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Insist on going on with the run in `-o`; without it an unfinished one is found.",
    ),
]
