"""The tree of commands, and the one place where an error becomes a message and an exit code.

A verb's file is imported here, so it imports nothing heavy at its top: what a verb needs, it
imports when it runs.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dslm import __version__
from dslm.cli import (
    chat,
    complete,
    config,
    data,
    doctor,
    evaluate,
    export,
    generate,
    hosts,
    launch,
    plan,
    recipes,
    runs,
    streams,
    terminal,
    train,
    tune,
    verify,
)
from dslm.errors import DslmError, Interrupted, OptionError, Where, shortened, unforeseen
from dslm.files import is_full

_BAD_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EIO)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

app = typer.Typer(
    name="dslm",
    help="Train Hugging Face models with DeepSpeed from one readable recipe.",
    epilog="Start with: dslm recipes list · dslm train quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        terminal.write(f"dslm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train Hugging Face models with DeepSpeed from one readable recipe."""


app.command("train", no_args_is_help=True)(train.train)
app.command("verify", no_args_is_help=True)(verify.verify)
app.command("plan", no_args_is_help=True)(plan.plan)
app.command("tune", no_args_is_help=True)(tune.tune)
app.command("config")(config.config)
app.add_typer(recipes.app, name="recipes")
app.add_typer(hosts.app, name="hosts")
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.command("generate", no_args_is_help=True)(generate.generate)
app.command("chat", no_args_is_help=True)(chat.chat)
app.command("evaluate", no_args_is_help=True)(evaluate.evaluate)
app.command("doctor")(doctor.doctor)
app.command("export", no_args_is_help=True)(export.export)
app.command(
    "launch",
    no_args_is_help=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
)(launch.launch)


def main() -> None:
    """Run dslm; every way out of it has the exit code that DESIGN.md gives."""
    complete.leave_values_open_in_bash()
    values = complete.values_in_bash(os.environ)
    if values is not None:
        terminal.write("\n".join(values))
        return
    debug = "--debug" in sys.argv
    if debug:
        # accepted anywhere before `--`, so that it can be added to a command line that failed
        cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
        sys.argv = [a for a in sys.argv[:cut] if a != "--debug"] + sys.argv[cut:]
    streams.prepare()
    code = 1
    try:
        app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    except BrokenPipeError:
        pass  # the reader of our output has gone (`dslm recipes list | head`): nobody to tell
    except Exception as exception:
        if debug:
            raise
        failure = _as_error(exception)
        terminal.error(failure)
        code = failure.exit_code
    finally:
        streams.settle()
    sys.exit(code)


def _as_error(exception: Exception) -> DslmError:
    """Turn an exception into an error: dslm's own, one of the system, or a bug."""
    if isinstance(exception, DslmError):
        return exception
    try:
        Path.cwd()
    except OSError:
        return OptionError(
            "the current folder was removed", hint="`cd` into one that exists, and try again"
        )
    if isinstance(exception, OSError) and exception.errno in _BAD_NAMES:
        # of a file that was named; dslm itself makes no such names
        return OptionError(f"{exception.strerror}: {shortened(str(exception.filename))}")
    if isinstance(exception, OSError) and exception.filename is None and exception.errno in _FULL:
        return DslmError(f"the output can't be written: {exception.strerror}")
    if isinstance(exception, OSError) and is_full(exception):
        full = (
            "your disk quota is exceeded" if exception.errno == errno.EDQUOT else "the disk is full"
        )
        return DslmError(
            full,
            where=Where(file=exception.filename),
            hint="free some space, or use another folder with `-o`; a run that had begun is "
            "resumed with `--resume`",
        )
    if isinstance(exception, OSError) and exception.errno in _REFUSED:
        return OptionError(f"{exception.strerror}: {shortened(str(exception.filename))}")
    return unforeseen(exception)


if __name__ == "__main__":
    main()
