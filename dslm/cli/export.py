"""`dslm export`: a checkpoint as a model in Hugging Face format."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dslm.cli import complete, options, terminal

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=complete.runs)
]
Step = Annotated[
    int | None,
    typer.Option(
        "--checkpoint", "--step", metavar="N", help="The checkpoint of step N; default: the newest."
    ),
]
Merge = Annotated[bool, typer.Option("--merge", help="Merge LoRA adapters into the model.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="bf16|fp16|fp32", help="Number format; default: the recipe's."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder; default: RUN/export/step-N."),
]
SkipVerify = Annotated[
    bool,
    typer.Option(
        "--skip-verify",
        help="Don't compare the checkpoint with its checksums; damage would become wrong weights.",
    ),
]
Push = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="REPO", help="Also upload it to the Hub.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoint",
        help="With `--merge`, run the code of a base model with `trust_remote_code`.",
    ),
]


def export(
    run: Run,
    checkpoint: Step = None,
    merge: Merge = False,
    dtype: Dtype = None,
    output: Output = None,
    skip_verify: SkipVerify = False,
    push_to_hub: Push = None,
    trust_checkpoint: Trust = False,
    json: options.Json = False,
) -> None:
    """Convert a checkpoint of any ZeRO stage to a model in Hugging Face format.

    One tensor is in memory at a time, whatever the size of the model.

    [dim]Examples:[/dim]

        dslm export runs/mine

        dslm export runs/mine --checkpoint 500 --dtype bf16 -o mine-500
    """
    from dslm.ask.call import ask
    from dslm.ask.export import check_sound, export_request, held_request
    from dslm.units import render_bytes, render_count

    choose = partial(
        export_request,
        run,
        step=checkpoint,
        merge=merge,
        dtype=dtype,
        output=output,
        push_to_hub=push_to_hub,
        trust=trust_checkpoint,
    )
    with terminal.busy() as tell, ExitStack() as holds:
        request = held_request(choose, holds)
        if not skip_verify:
            tell("comparing the checkpoint with its checksums")
            check_sound(request.run, request.checkpoint)
        found = ask("dslm.worker.export", request.document(), tell)
    if json:
        terminal.write_json(found)
        return
    terminal.say(
        f"exported step {found['step']}: {render_count(found['parameters'])} parameters, "
        f"{render_bytes(found['bytes'])}\n  model  {found['output']}"
    )
