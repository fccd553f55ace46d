"""Options that several verbs share, declared once: the same name and the same help everywhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from dslm.cli import complete
from dslm.lifecycle.placement import Placement


def refuse_ignored(given: Mapping[str, object], because: str, hint: str = "") -> None:
    """Refuse options that would have no effect.

    Args:
        given: options by name, with what was given for each; None, False or empty: not given.
        because: what makes them do nothing, as the end of a sentence.
        hint: what would be right.

    Raises:
        OptionError: the first of them.
    """
    from dslm.errors import OptionError, Where

    for name, value in given.items():
        if value is not None and value is not False and value != []:
            raise OptionError(f"`{name}` has no effect {because}", where=Where(key=name), hint=hint)


def settings(set_: list[str] | None, with_: list[str] | None) -> list[str]:
    """Return the overrides of a recipe: what `--with` puts on it, then `--set`."""
    from dslm.recipe.catalog import put_on

    return [*put_on(with_ or ()), *(set_ or ())]


def recipe_of(
    recipe: str | None, model: str | None, set_: list[str] | None, with_: list[str] | None
) -> tuple[str, list[str]]:
    """Return the recipe that is meant, and its overrides: RECIPE, or that of any `--model`.

    Raises:
        OptionError: neither or both are given.
    """
    from dslm.errors import OptionError, Where

    if recipe is not None and model is not None:
        raise OptionError(
            f"`{recipe}` and `--model {model}` both say which model",
            where=Where(key="--model"),
            hint=f"`{recipe} --set model.name={model}` trains another model by that recipe",
        )
    if model is not None:
        from dslm.decide.job import of_model

        name, overrides = of_model(model)
        return name, [*overrides, *settings(set_, with_)]
    if recipe is None:
        raise OptionError(
            "give a recipe, or any model by `--model`",
            hint="`dslm recipes list` shows the presets; `--model NAME_OR_FOLDER --with sft`",
        )
    return recipe, settings(set_, with_)


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FOLDER",
        help="A model by its Hub name or folder, instead of a recipe.",
    ),
]
OptionalRecipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="A preset's name or a YAML file.",
        autocompletion=complete.recipes,
        show_default=False,
    ),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A preset's name or a YAML file.",
        autocompletion=complete.recipes,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a key of the recipe.",
        autocompletion=complete.settings,
    ),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="PURPOSE,…",
        help="Add purposes to the model, such as sft,lora; `dslm recipes list` shows them.",
        autocompletion=complete.purposes,
    ),
]
NumGpus = Annotated[
    int | None,
    typer.Option("--num-gpus", min=1, help="Ranks per host; default: every accelerator."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Kind of device, such as h100-80gb or cpu; default: this machine's.",
        autocompletion=complete.devices,
    ),
]
Include = Annotated[
    str | None,
    typer.Option(
        "--include", metavar="SPEC", help="Use only these hosts and slots: `localhost:0,2`."
    ),
]
Exclude = Annotated[
    str | None,
    typer.Option(
        "--exclude", metavar="SPEC", help="Use all hosts and slots but these: `localhost:1`."
    ),
]
Hostfile = Annotated[
    str | None,
    typer.Option(
        "--hostfile",
        "-H",
        metavar="FILE",
        help="Hosts to run on: lines of `HOST slots=N`, or `w1:4,w2:4`; default: this machine.",
    ),
]
NumNodes = Annotated[
    int | None, typer.Option("--num-nodes", min=1, help="Use only the first N hosts.")
]
Launcher = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="local|pdsh|openmpi|slurm",
        autocompletion=complete.launchers,
        help="How ranks are started; default: pdsh with a hostfile.",
    ),
]
QUEUE = "slurm"  # the site that `--slurm` submits to
Queue = Annotated[
    bool,
    typer.Option(
        f"--{QUEUE}",
        help="Submit it to Slurm as a batch job, which resumes when interrupted.",
    ),
]
NoPreflight = Annotated[
    bool, typer.Option("--no-preflight", help="Don't check the hosts before launching.")
]
MaxRestarts = Annotated[
    int | None,
    typer.Option(
        "--max-restarts",
        min=0,
        metavar="N",
        help="Restarts after a retryable failure; default: 3 on several hosts, 0 on one.",
    ),
]
MinNodes = Annotated[
    int | None,
    typer.Option(
        "--min-nodes",
        min=1,
        metavar="N",
        help="Fewest hosts to continue with after a failure; default: 1.",
    ),
]
MasterPort = Annotated[
    int | None,
    typer.Option(
        "--master-port",
        min=1,
        max=65535,
        help="Port of the ranks' rendezvous; default: a free one.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Run directory; default: runs/RECIPE-TIME."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run; write and start nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Force = Annotated[
    bool, typer.Option("--force", help="Continue even if the plan says that it does not fit.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume the run in `-o`, or the newest unfinished one of the recipe; fail if there "
        "is none.",
    ),
]

WeightsOnly = Annotated[
    str | None,
    typer.Option(
        "--weights-only",
        metavar="RUN",
        help="Start a new run from the weights of another one, or of a checkpoint's folder, and "
        "from nothing else of it.",
        autocompletion=complete.runs,
    ),
]
TrustCheckpoint = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoint",
        help="Load a checkpoint that holds more than tensors, which runs its author's code.",
    ),
]


_PLACEMENT = {
    "hostfile": Hostfile,
    "num_nodes": NumNodes,
    "num_gpus": NumGpus,
    "include": Include,
    "exclude": Exclude,
    "launcher": Launcher,
    "no_preflight": NoPreflight,
}
_RESTARTS = {"max_restarts": MaxRestarts, "min_nodes": MinNodes}
ANYWHERE = Placement()


def placed(*, restarts: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of a placement, instead of its parameter `placement`.

    Args:
        restarts: whether the verb starts again after a failure.
    """
    fields = {**_PLACEMENT, **(_RESTARTS if restarts else {})}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        parameters = []
        for parameter in inspect.signature(verb).parameters.values():
            own = {parameter.name: hints[parameter.name]}
            for name, kind in (fields if parameter.name == "placement" else own).items():
                default = getattr(ANYWHERE, name, parameter.default)
                parameters.append(parameter.replace(name=name, annotation=kind, default=default))

        @functools.wraps(verb)
        def called(**given: Any) -> None:
            where = {name: given.pop(name) for name in fields}
            verb(placement=Placement(**where), **given)

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate
